"""The server as it is, which also tells how many tasks it has: `python -m soak.subject`.

Each second their number stands in the file `tasks` of its folder. Settings come from the
environment, and deployments from the file `soak.toml`.
"""

import asyncio
import logging
from pathlib import Path

import uvloop

from turnkeeper import compose
from turnkeeper.config import read_config

TASKS = "tasks"


async def serve() -> None:
    def announce(address: str, _model: str) -> None:
        print(f"Turnkeeper is listening on {address}", flush=True)

    telling = asyncio.create_task(_tell())
    try:
        await compose.serve(read_config({"config": "soak.toml"}), announce)
    finally:
        telling.cancel()


async def _tell() -> None:
    while True:
        Path(TASKS).write_text(str(len(asyncio.all_tasks())))  # noqa: ASYNC240  a few bytes
        await asyncio.sleep(1)


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
