"""Hosts of a test: network namespaces of this machine, joined by veth pairs and a bridge."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import pytest


class Hosts:
    """`count` namespaces with an address each; needs root and iproute2, and says so where they are not there."""

    def __init__(self, count: int) -> None:
        tag = uuid.uuid4().hex[:6]
        self._bridge = f"fs{tag}"
        self._names = [f"{self._bridge}-{host}" for host in range(count)]

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on the host."""
        return ["ip", "netns", "exec", self._names[host], *command]

    def cut_off(self, host: int) -> None:
        """Nothing reaches the host any more, nor does it say goodbye."""
        _ip("link", "set", f"{self._bridge}v{host}", "down")

    def worsen(self, delay: str, loss: str) -> bool:
        """Packets of all hosts are late and get lost; False where this kernel cannot (no netem)."""
        return all(
            _try(
                "tc",
                "qdisc",
                "add",
                "dev",
                f"{self._bridge}v{host}",
                "root",
                "netem",
                "delay",
                delay,
                "loss",
                loss,
            )
            for host in range(len(self._names))
        )

    def __enter__(self) -> Self:
        missing = "root and iproute2 are needed for network namespaces"
        if os.geteuid() != 0 or shutil.which("ip") is None or not _try("ip", "netns", "add", self._names[0]):
            if os.environ.get("FASTSERVE_REQUIRE_NETNS"):
                pytest.fail(missing)
            pytest.skip(missing)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for host, name in enumerate(self._names):
            outside, inside = f"{self._bridge}v{host}", f"{self._bridge}e{host}"
            if host > 0:
                _ip("netns", "add", name)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", inside)
            _ip("-n", name, "link", "set", inside, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._names:
            _try("ip", "netns", "del", name)
        for host in range(
            len(self._names)
        ):  # those whose namespace lives on in a process that is being killed
            _try("ip", "link", "del", f"{self._bridge}v{host}")
        _try("ip", "link", "del", self._bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _try(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
