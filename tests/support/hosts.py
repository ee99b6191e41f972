"""Hosts on one machine: network namespaces with their own addresses, sshd and pdsh between them.

A host has a network, a name, process numbers and mounts of its own, and sees the files of this
machine, as the nodes of a cluster see a shared file system. Its ssh knows throw-away keys alone.
All of it hangs on processes of the test, and is gone with them, however they end.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "pdsh": "pdsh"}
OWN = ["--net", "--uts", "--mount", "--pid"]
SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PidFile none
"""
SSH = """
Host *
  IdentityFile {folder}/user_key
  UserKnownHostsFile {folder}/known_hosts
  IdentitiesOnly yes
  BatchMode yes
"""
# Linux gives up a silent connection after 15 minutes; by this setting after 25 s.
SET_UP = """
echo 6 > /proc/sys/net/ipv4/tcp_retries2
hostname {name}
ip link set lo up
ip addr add {address}/24 dev eth0
ip link set eth0 up
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mkdir /run/sshd
/usr/sbin/sshd -f {folder}/sshd_config -E {folder}/{name}.log
"""


@dataclass(frozen=True)
class Host:
    """One of them."""

    name: str
    pid: int
    """Its process 1, as this machine counts."""
    switch: int
    """A process in the network of the switch."""

    def start(
        self, script: str, *, place: Path, log: Path, env: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start lines of bash there, in the folder `place`; all they print goes to `log`."""
        inside = ["nsenter", f"--target={self.pid}", *OWN, f"--wdns={place}"]
        with log.open("w") as out:
            return subprocess.Popen(
                [*inside, "bash", "-c", script], env=env, stdout=out, stderr=subprocess.STDOUT
            )

    def cut(self) -> None:
        """Nothing reaches it any more, and nobody is told: as if its cable were pulled."""
        _run([*_in_network(self.switch), "ip", "link", "set", self.name, "down"])

    def mend(self) -> None:
        """The end of the cut."""
        _run([*_in_network(self.switch), "ip", "link", "set", self.name, "up"])

    def programs(self) -> list[str]:
        """Command lines of what runs there, but for process 1 and sshd."""
        own, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):  # it has ended
                there = os.readlink(f"/proc/{process.pid}/ns/pid") == own
                if there and process.pid != self.pid and process.name() != "sshd":
                    found.append(" ".join(process.cmdline()))
        return [line for line in found if line]  # the dead have none


@contextmanager
def hosts(folder: Path, count: int = 2) -> Iterator[list[Host]]:
    """`node1`, `node2`, ... on one switch; `folder` takes their keys and settings."""
    _skip_where_there_are_none()
    names = [f"node{number}" for number in range(1, count + 1)]
    addresses = [f"10.77.0.{number}" for number in range(1, count + 1)]
    _write_settings(folder, dict(zip(names, addresses, strict=True)))
    with ExitStack() as ends:
        switch = ends.enter_context(_namespace(["--net"]))
        link = [*_in_network(switch), "ip", "link"]
        _run([*link, "add", "switch", "type", "bridge"])
        _run([*link, "set", "switch", "up"])
        made = []
        for name, address in zip(names, addresses, strict=True):
            pid = ends.enter_context(_namespace([*OWN, "--mount-proc"]))
            cable = ["name", "eth0", "netns", str(pid)]
            _run([*link, "add", name, "type", "veth", "peer", *cable])
            _run([*link, "set", name, "master", "switch", "up"])
            into = ["nsenter", f"--target={pid}", *OWN]
            _run([*into, "bash", "-ec", SET_UP.format(name=name, address=address, folder=folder)])
            made.append(Host(name, pid, switch))
        yield made


def _skip_where_there_are_none() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces take root on Linux")
    missing = [package for tool, package in PACKAGES.items() if not shutil.which(tool)]
    if missing:
        pytest.skip(f"apt-get install {' '.join(missing)}")
    bridge = ["unshare", "--net", "ip", "link", "add", "switch", "type", "bridge"]
    tried = subprocess.run(bridge, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no network namespaces with a bridge: {tried.stderr.strip()}")


@contextmanager
def _namespace(own: list[str]) -> Iterator[int]:
    """The process that keeps it, which ends, and all in it, when its standard input does."""
    # bash also waits for those whose parents have ended, as process 1 has to.
    command = ["unshare", *own, "--fork", "bash", "-c", "echo up; read -r"]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None and keeper.stdout.readline() == "up\n"
        [inner] = psutil.Process(keeper.pid).children()
        yield inner.pid
    finally:
        keeper.communicate()


def _write_settings(folder: Path, addresses: dict[str, str]) -> None:
    for name in ("host_key", "user_key"):
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    known = ",".join([*addresses, *addresses.values()])
    (folder / "known_hosts").write_text(f"{known} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "ssh_config").write_text(SSH.format(folder=folder))
    lines = [f"{address} {name}\n" for name, address in addresses.items()]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))


def _in_network(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net"]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)
