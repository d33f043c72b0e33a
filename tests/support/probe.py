"""Asks a health endpoint, as the probes of Kubernetes do and a curious person."""

from collections.abc import Mapping

import httpx

from tests.support.broker import PATIENCE, eventually
from tests.support.rabbitmq import HOST, free_ports


class Probe:
    """`address` is free until somebody is told to listen there."""

    def __init__(self, token: str | None = None) -> None:
        self.address = f"{HOST}:{free_ports(1)[0]}"
        self._headers: Mapping[str, str] = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """Raises what httpx does when nobody answers."""
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            return await client.get(f"http://{self.address}{path}", headers={**self._headers, **headers})

    async def until(self, path: str, status: int, *words: str, within: float = 2 * PATIENCE) -> str:
        """Until it answers with this status, and with these words; all that it says then."""
        said = ""

        async def is_so() -> bool:
            nonlocal said
            try:
                response = await self.get(path)
            except httpx.TransportError as error:
                said = repr(error)
                return False
            said = response.text
            return response.status_code == status and all(word in said for word in words)

        try:
            await eventually(is_so, within=within)
        except AssertionError as error:
            raise AssertionError(f"{path} did not become {status} {words}, and said at last: {said}") from error
        return said

    async def until_ready(self) -> None:
        assert await self.until("/readyz", 200) == "ready\n"

    async def until_live(self) -> None:
        """Not at once: a process that the machine has let stand still says so for a moment."""
        assert await self.until("/livez", 200) == "ok\n"
