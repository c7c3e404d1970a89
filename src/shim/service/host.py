"""What all containers of one front share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shim.blocking import BlockingPool
from shim.keeper.client import KeeperClient


@dataclass(frozen=True)
class Host:
    """The keeper, the threads for what may block, and the environment that runtimes get."""

    keeper: KeeperClient
    pool: BlockingPool
    env: Mapping[str, str]
