"""What the reports service is told by its environment: REPORTS_FOLDER, REPORTS_TIMEZONE …"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ReportsSettings(BaseSettings):
    """All settings of the service."""

    model_config = SettingsConfigDict(env_prefix="REPORTS_", env_ignore_empty=True, frozen=True)

    #: Where reports go; made when the first one is written.
    folder: Path = Path("reports")
    #: A file with the sales; made when the worker starts.
    store: Path = Path("reports.sqlite")
    #: Whose days are meant, and on whose clocks it is time.
    timezone: str = "Europe/Berlin"
    #: When the day's report is written, in cron's words; not on holidays.
    daily: str = "0 7 * * mon-fri"
    #: When is cleaned up.
    clean_up: str = "30 3 * * *"
    #: Days after which reports and their sales are deleted.
    keep: int = Field(default=90, ge=1)
