from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from amqpjobs.errors import SettingsError
from amqpjobs.settings import (
    DEFAULT_URL,
    Settings,
    host_name,
    load_settings,
    log_level_number,
    masked,
    place_of,
    size_of,
    split_urls,
    wants_readable_logs,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]  (pytest uses it)
    monkeypatch.chdir(tmp_path)


def test_without_a_word_the_defaults_hold() -> None:
    settings = load_settings()

    assert (settings.concurrency, settings.max_attempts, settings.timeout) == (10, 5, 300.0)
    assert (settings.grace, settings.enqueue_timeout, settings.namespace) == (25.0, 5.0, "amqpjobs")
    assert settings.urls == [DEFAULT_URL]
    assert settings.is_default_url


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_URL", "amqps://u:p@example.org/vhost")
    monkeypatch.setenv("AMQPJOBS_CONCURRENCY", "3")
    monkeypatch.setenv("AMQPJOBS_APPS", "services.email, services.pdf,")

    settings = load_settings()

    assert settings.urls == ["amqps://u:p@example.org/vhost"]
    assert settings.concurrency == 3
    assert settings.apps == ["services.email", "services.pdf"]
    assert not settings.is_default_url


def test_pyproject_is_read_also_from_a_folder_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.amqpjobs]\napps = ["services.email"]\nnamespace = "shop"\nconcurrency = 4\n'
    )
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)

    settings = load_settings()

    assert (settings.apps, settings.namespace, settings.concurrency) == (["services.email"], "shop", 4)


def test_code_goes_before_environment_and_environment_before_pyproject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.amqpjobs]\nconcurrency = 1\nmax_attempts = 1\ntimeout = 1\n")
    monkeypatch.setenv("AMQPJOBS_CONCURRENCY", "2")
    monkeypatch.setenv("AMQPJOBS_MAX_ATTEMPTS", "2")

    settings = load_settings(concurrency=3)

    assert (settings.concurrency, settings.max_attempts, settings.timeout) == (3, 2, 1.0)


def test_a_pyproject_of_others_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')

    settings = load_settings()

    assert settings.concurrency == 10


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AMQPJOBS_CONCURRENCY", "many"),
        ("AMQPJOBS_CONCURRENCY", "0"),
        ("AMQPJOBS_TIMEOUT", "0"),
        ("AMQPJOBS_TIMEOUT", "nan"),
        ("AMQPJOBS_GRACE", "-1"),
        ("AMQPJOBS_HEARTBEAT", "0"),
        ("AMQPJOBS_LOG_LEVEL", "LOUD"),
        ("AMQPJOBS_URL", ""),
        ("AMQPJOBS_URL", "http://example.org"),
        ("AMQPJOBS_URL", "amqp://"),
        ("AMQPJOBS_URL", "amqp://host:port/"),
        ("AMQPJOBS_URL", "amqp://host:70000/"),
        ("AMQPJOBS_URL", "amqp://[::1/"),
        ("AMQPJOBS_URL", "amqp://one/,ftp://two/"),
        ("AMQPJOBS_NAMESPACE", ""),
        ("AMQPJOBS_NAMESPACE", "a..b"),
        ("AMQPJOBS_NAMESPACE", "a.0"),
        ("AMQPJOBS_NAMESPACE", "amq.a"),
        ("AMQPJOBS_NAMESPACE", "a b"),
        ("AMQPJOBS_NAMESPACE", "é"),
        ("AMQPJOBS_NAMESPACE", "x" * 41),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_with_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError, match=variable):
        load_settings()


def test_all_wrong_settings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_CONCURRENCY", "many")
    monkeypatch.setenv("AMQPJOBS_GRACE", "-1")

    with pytest.raises(SettingsError, match=r"AMQPJOBS_CONCURRENCY \(concurrency in .*; AMQPJOBS_GRACE"):
        load_settings()


def test_a_setting_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.amqpjobs]\nconcurency = 4\n")

    with pytest.raises(SettingsError, match="concurency"):
        load_settings()


def test_a_pyproject_that_is_no_toml_is_told(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.amqpjobs\n")

    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()


def test_the_password_is_in_no_repr() -> None:
    settings = load_settings(url=SecretStr("amqp://user:5ecret@host/"))

    assert "5ecret" not in f"{settings!r} {settings} {settings.shown_url} {settings.model_dump()}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:5ecret@host:5672/vhost", "amqp://user:***@host:5672/vhost"),
        ("amqp://user:5ecret@host", "amqp://user:***@host"),
        ("amqp://host/", "amqp://host/"),
        ("amqp://us%40er:5ecret@host/", "amqp://us%40er:***@host/"),
        ("amqps://user:5ecret@[::1]:5671/", "amqps://user:***@[::1]:5671/"),
        ("amqp://user:5ecret@host/?password=5ecret#5ecret", "amqp://user:***@host/"),
        ("amqp://:5ecret@host/", "amqp://host/"),
        ("amqp://user:5e@cret@host/", "amqp://user:***@host/"),
        ("amqp://user:5e:cret@host/", "amqp://user:***@host/"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked(url) == shown


BROKEN_URLS = [
    "user:5ecret@host",
    "user:5ecret@host:5672/vhost",
    "5ecret@host",
    "amqp:user:5ecret@host/",
    "amqp:/user:5ecret@host/",
    "amqp:///user:5ecret@host/",
    "amqp://user:5ecret/more@host/",
    "amqp://user:12/5ecret@host/",
    "amqp://user:12?5ecret@host/",
    "amqp://user:12#5ecret@host/",
    "amqp://user:5ecret@host:port/",
    "amqp://user:5ecret@[::1/",
    "amqp://user:5ecret\u2100@host/",
    "amqp://user:12,5ecret@host/",
    "http://user:5ecret@host/",
    " user:5ecret@host",
]


@pytest.mark.parametrize("url", BROKEN_URLS)
def test_a_broken_url_is_masked_without_a_part_of_the_password(url: str) -> None:
    shown = [masked(part) for part in split_urls(SecretStr(url))]

    assert "5ecret" not in " ".join(shown)


@pytest.mark.parametrize("url", BROKEN_URLS)
def test_a_broken_url_is_refused_without_a_part_of_the_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_URL", url)

    try:
        told = load_settings().shown_url
    except SettingsError as error:
        told = f"{error} {error.__cause__!r}"

    assert "5ecret" not in told


@given(st.text(max_size=30), st.sampled_from(["amqp://", "amqps://", "amqp:", "", "//"]))
def test_masking_raises_nothing(text: str, scheme: str) -> None:
    shown = masked(scheme + text)

    assert isinstance(shown, str)


def test_several_urls_of_a_cluster_are_tried_in_turn() -> None:
    settings = load_settings(url=SecretStr("amqp://u:p@one/, amqp://u:p@two/,"))

    assert settings.urls == ["amqp://u:p@one/", "amqp://u:p@two/"]
    assert settings.shown_url == "amqp://u:***@one/, amqp://u:***@two/"


def test_settings_cannot_be_changed_later() -> None:
    settings = Settings()

    with pytest.raises(ValueError, match="frozen"):
        settings.concurrency = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]  (what is tested)


def test_a_host_has_a_name() -> None:
    assert host_name()


def test_logs_are_for_people_when_asked_or_on_a_terminal() -> None:
    assert wants_readable_logs("text")
    assert not wants_readable_logs("json")
    assert not wants_readable_logs("auto")


def test_log_levels_are_those_of_the_logging_module() -> None:
    assert log_level_number("WARNING") == 30


def test_sizes_have_units_of_1024() -> None:
    sizes = {"1": 1, "65536": 65536, "1K": 1024, "512M": 2**29, "512 MiB": 2**29, " 1.5g ": 3 * 2**29, "2TB": 2**41}

    assert {text: size_of(text) for text in sizes} == sizes


@pytest.mark.parametrize("text", ["", "M", "-1M", "0", "12 apples", "1e9", "5X", "1,5G"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="512M"):
        size_of(text)
    monkeypatch.setenv("AMQPJOBS_MAX_MEMORY", text)
    with pytest.raises(SettingsError, match="AMQPJOBS_MAX_MEMORY"):
        load_settings()


def test_a_memory_limit_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_MAX_MEMORY", "512M")

    assert load_settings().max_memory == 2**29
    assert load_settings(max_memory=7).max_memory == 7


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:1", ("localhost", 1)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, place: tuple[str, int]) -> None:
    assert place_of(address) == place


@pytest.mark.parametrize(
    "address",
    [
        *["", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "::1:8080", "[::1]", "a:70000"],
        *["http://127.0.0.1:8080", "127.0.0.1:8080/", "user@127.0.0.1:8080", " 127.0.0.1:8080", "[::1:8080"],
    ],
)
def test_what_is_no_address_is_told_with_its_variable(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_HEALTH", address)

    with pytest.raises(SettingsError, match=r"AMQPJOBS_HEALTH \(health in .*should look like 127\.0\.0\.1:8080"):
        load_settings()


@pytest.mark.parametrize("token", ["", "short", "with a blank, but long enough", "ünïcödé-ünïcödé-ünïcödé", "x" * 15])
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused_and_not_told(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMQPJOBS_HEALTH_TOKEN", token)

    with pytest.raises(SettingsError, match=r"AMQPJOBS_HEALTH_TOKEN .*16 letters") as refused:
        load_settings()

    assert not token or token not in str(refused.value)


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQPJOBS_HEALTH_TOKEN", "a-token-of-the-tests")

    assert "a-token-of-the-tests" not in repr(load_settings())
