"""Addresses without a usable Ray cluster; for real clusters see test_cluster.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray

from adaptive_ray.errors import UserError
from adaptive_ray.ray_cluster import address as ray_address
from adaptive_ray.ray_cluster.address import check_address, cluster_address

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def complaint(address: str) -> str:
    with pytest.raises(UserError) as caught:
        check_address(address)
    text = str(caught.value)
    assert "\n" not in text
    assert address in text
    return text


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server((ray.util.get_node_ip_address(), 0)) as server:
        yield "{}:{}".format(*server.getsockname())


@pytest.fixture
def web_server() -> Iterator[str]:
    with HTTPServer((ray.util.get_node_ip_address(), 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield "{}:{}".format(*server.server_address[:2])
        server.shutdown()


def test_connection_refused() -> None:
    assert "Connection refused" in complaint("127.0.0.1:1")


def test_a_host_without_an_address() -> None:
    assert "not found" in complaint("no-such-host.invalid:6379")


def test_timeout(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_TIMEOUT", 1)
    started = time.monotonic()
    assert "timed out after 1 seconds" in complaint(silent)
    assert time.monotonic() - started < 20


def test_something_else_listens(web_server: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "another service listens on this port" in complaint(web_server)


@pytest.mark.parametrize("address", ["head", "a:b:c", "http://head:8265", "ray://head:10001"])
def test_no_address(address: str) -> None:
    assert "HOST:" in complaint(address)


def test_which_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "named:6379")
    assert cluster_address("given:6379") == "given:6379"
    assert cluster_address(None) == "named:6379"
    assert cluster_address("local") is None
    for nothing in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", nothing)
        assert cluster_address(None) is None


@pytest.mark.slow
def test_the_command_says_so_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "adaptive_ray", "run", QUICKSTART, "--runs-dir", str(tmp_path / "runs")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
    )  # fmt: skip
    assert time.monotonic() - started < 30
    assert done.returncode == 2
    assert done.stderr.startswith("adaptive-ray: no Ray cluster at 127.0.0.1:1: Connection refused")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
