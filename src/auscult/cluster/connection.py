"""Connect to a Ray cluster, and make sure that its nodes run what the driver runs."""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..errors import ClusterError, MissingExtraError

log = logging.getLogger(__name__)

REACH_S = 5.0  # for an answer from the address: ray.init alone tries for two minutes, and then ends the process
CHECK_S = 120.0  # for a node to start a process that imports auscult, maybe from a slow file system
REFRESH_S = 5.0  # how old what is known of the nodes may be

# Read by Ray when it is imported or started. Nothing is reported to anyone; and of what raylets say of workers that died,
# which would be printed among the results of a command, nothing is shown: it ends as an error of ours, or as nothing.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# HTTP/2's preface and an empty SETTINGS frame; what speaks gRPC answers with a SETTINGS frame (its fourth byte is its type)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass
class Session:
    """A cluster that this process is connected to.

    Attributes
    ----------
    address
        As it was asked for.
    ray
        The module.
    """

    address: str
    ray: ModuleType
    _checked: set[str] = field(default_factory=set)
    _nodes: list[dict[str, Any]] = field(default_factory=list)
    _seen_s: float = -1e9

    def nodes(self, *, fresh: bool = False) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray tells of them; those that are new are checked.

        Raises
        ------
        ClusterError
            A new node runs other versions, or the cluster is gone.
        """
        if fresh or time.monotonic() - self._seen_s > REFRESH_S:
            self._nodes = [node for node in self.ray.nodes() if node["Alive"]]
            new = [node for node in self._nodes if node["NodeID"] not in self._checked and node["Resources"].get("CPU", 0) >= 1]
            check_nodes(self.ray, new)
            self._checked |= {node["NodeID"] for node in new}
            self._seen_s = time.monotonic()
        return self._nodes

    def slots(self, *, gpus: bool = False) -> int:
        """How many processes of one CPU (and one GPU) the cluster has room for."""
        return sum(
            int(min(node["Resources"].get(kind, 0) for kind in (("CPU", "GPU") if gpus else ("CPU",)))) for node in self.nodes()
        )


_session: Session | None = None  # Ray knows one connection a process


def connect(address: str, workers: int = 1) -> Session:
    """Connect to a cluster and check its nodes; the same cluster again is the same session, which ends with the process.

    Parameters
    ----------
    address
        ``HOST:PORT`` of a cluster that this machine belongs to, ``auto`` to find that one, ``ray://HOST:PORT`` from outside, or
        ``local`` to start one on this machine.
    workers
        CPUs of a ``local`` one.

    Raises
    ------
    ClusterError
        The address cannot be reached, or the versions of Ray, Python or auscult are not the same everywhere.
    MissingExtraError
        Ray is not installed.
    """
    global _session
    ray = _imported()
    if _session is not None and ray.is_initialized() and _session.address == address:
        return _session
    if ray.is_initialized():
        _check_connected(ray, address)
    else:
        _start(ray, address, workers)
    session = Session(address, ray)
    if not session.nodes(fresh=True):
        raise ClusterError(f"{address}: the cluster has no node that is alive; see `ray status`")
    _session = session
    return session


def _imported() -> ModuleType:
    try:
        with _environment(_QUIET), _warnings_ignored():
            import ray
    except ImportError as error:
        raise MissingExtraError("cluster", "work on a Ray cluster") from error
    return ray


def _check_connected(ray: ModuleType, address: str) -> None:
    """The connection that the process has already, from an earlier call or of its own, must be the one asked for."""
    has = ray.get_runtime_context().gcs_address
    wanted = address if _session is None or address not in {"local", "auto"} else has
    if wanted not in {"local", "auto", has}:
        raise ClusterError(f"{address}: this process is connected to the cluster at {has}; call ray.shutdown() before")


def _start(ray: ModuleType, address: str, workers: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": workers, "include_dashboard": False}
    elif not address.startswith("ray://"):
        address = _found(address)
    if address != "local":
        check_reachable(address)
    if address.startswith("ray://"):
        options = {"logging_level": logging.ERROR}
    try:
        with _environment(_QUIET), _warnings_ignored():
            ray.init(address=address, **options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it raises bare Exceptions, and exits where it gives up
        raise ClusterError(f"{address}: {_reason(error)}") from None


def _found(address: str) -> str:
    """The address that ``auto`` means; others as they are."""
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto") or "")
    except ConnectionError:
        raise ClusterError("auto: no Ray cluster runs on this machine; give its address, or 'local' to start one") from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return "the cluster did not answer in time"
    if "ersion mismatch" in text:
        return f"{text}; install the same versions of Ray and Python on this machine and on the cluster"
    if "ray[client]" in text:
        return "an address that begins with ray:// needs Ray's client: pip install 'auscult[cluster]'"
    return f"cannot connect ({text[:300]})"


def check_reachable(address: str) -> None:
    """Raise ClusterError if nothing at ``HOST:PORT`` or ``ray://HOST:PORT`` answers within seconds as Ray would."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ClusterError(f"{address}: expected HOST:PORT, ray://HOST:PORT, 'auto' or 'local' as the address of a Ray cluster")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S) as connection:
            connection.settimeout(REACH_S)
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
    except TimeoutError:
        raise ClusterError(f"{address}: does not answer; is this the address of a Ray cluster, and the port open?") from None
    except OSError as error:
        raise ClusterError(f"{address}: cannot be reached ({error.strerror or error}); does the cluster run there?") from None
    if answer[3:4] != b"\x04":
        raise ClusterError(f"{address}: something else than Ray answers there; see `ray status` for the address of the cluster")


# --- the same versions everywhere -----------------------------------------------------------------------------------


def check_nodes(ray: ModuleType, nodes: list[dict[str, Any]]) -> None:
    """Raise ClusterError if a node cannot import what is needed, or runs other versions than this process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not nodes:
        return
    ask = ray.remote(_versions_of_a_worker())
    expected = versions()
    asked = [
        ask.options(
            num_cpus=0, max_retries=2, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False)
        ).remote()
        for node in nodes
    ]
    deadline = time.monotonic() + CHECK_S
    for node, answer in zip(nodes, asked, strict=True):
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            found = ray.get(answer, timeout=max(deadline - time.monotonic(), 1.0))
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(f"{name}: started no worker within {CHECK_S:.0f} s; see `ray status`") from None
        except ray.exceptions.RayError as error:
            if any(other["NodeID"] == node["NodeID"] and not other["Alive"] for other in ray.nodes()):
                continue  # it was lost meanwhile, and is as good as never seen
            raise ClusterError(f"{name}: cannot run a task ({' '.join(str(error).split())[-300:]})") from None
        wrong = [f"{what} {found.get(what)} instead of {has}" for what, has in expected.items() if found.get(what) != has]
        if wrong:
            raise ClusterError(f"{name} has {', '.join(wrong)}; install the same versions as on this machine on every node")


def versions() -> dict[str, str]:
    """Of what must be the same in the driver and on every node."""
    import ray

    from .. import __version__

    return {
        "auscult": __version__,
        "ray": ray.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "imports": "what it needs",
    }


def _versions_of_a_worker() -> Callable[[], dict[str, str]]:
    """The same as a function that is sent by value, since a node may lack the module that this one is in."""

    def found() -> dict[str, str]:
        import importlib
        import platform

        def version(name: str) -> str:
            try:
                return str(importlib.import_module(name).__version__)
            except ImportError as error:
                return f"not importable ({error})"

        imports = [version(name) for name in ("numpy", "faiss", "pyarrow", "soundfile")]
        bad = [text for text in imports if text.startswith("not")]
        return {
            "auscult": version("auscult"),
            "ray": version("ray"),
            "python": ".".join(platform.python_version_tuple()[:2]),
            "imports": "; ".join(bad) or "what it needs",
        }

    return found


# --- quiet ----------------------------------------------------------------------------------------------------------


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for what is started here; those that the user has set stand."""
    own = {name: value for name, value in values.items() if name not in os.environ}
    paths = os.pathsep.join(path for path in sys.path if path)
    before = os.environ.get("PYTHONPATH")
    os.environ.update(own)
    os.environ["PYTHONPATH"] = paths  # so that the workers of a cluster that is started here import what this process does
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _warnings_ignored() -> Iterator[None]:
    """Ray warns of changes in its own future versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
