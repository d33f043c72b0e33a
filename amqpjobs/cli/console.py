"""Where commands print: apart from what they share, since rich takes long to load and a worker prints nothing."""

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
