"""The command line: ``convexlayer serve``, ``solvers``, ``compile`` and ``gallery``."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; that of the process unless given.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="convexlayer", description="Differentiable convex optimisation.")
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="answer requests over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument("--port", type=_port, default=8000, help="port, 0 for any free one (default %(default)s)")
    serve.add_argument("--insecure", action="store_true", help="allow an address that others can reach")
    serve.set_defaults(run=_serve)

    solvers = commands.add_parser("solvers", help="list the solvers, what they support, and whether they are installed")
    solvers.set_defaults(run=_solvers)

    kernels = commands.add_parser("compile", help="compile the kernels now, so that the next process has them")
    kernels.set_defaults(run=_compile)

    gallery = commands.add_parser("gallery", help="the experiments of the papers that the nodes come from")
    gallery_commands = gallery.add_subparsers(required=True, metavar="command")
    gallery_list = gallery_commands.add_parser("list", help="name the entries")
    gallery_list.set_defaults(run=_gallery_list)
    gallery_run = gallery_commands.add_parser("run", help="run entries, and write figures (PNG) and numbers (JSON)")
    gallery_run.add_argument("names", nargs="*", metavar="NAME", help="entries to run")
    gallery_run.add_argument("--all", action="store_true", help="run all of them")
    gallery_run.add_argument("--output", type=Path, default=Path("gallery"), help="folder (default %(default)s)")
    gallery_run.add_argument("--no-progress", action="store_true", help="no progress bar")
    gallery_run.set_defaults(run=_gallery_run)

    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _serve(options: argparse.Namespace) -> int:
    if not options.insecure and not _is_loopback(options.host):
        return _refuse(
            f"{options.host} can be reached by others, and this server asks nobody for a key: "
            "listen on 127.0.0.1, or pass --insecure if the network is yours"
        )
    try:
        import uvicorn

        from convexlayer_server import create_app
    except ImportError as error:
        return _refuse(f"the server needs more packages ({error}): pip install 'convexlayer[server]'")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        listener = _listen(options.host, options.port)
    except OSError as error:
        return _refuse(f"cannot listen on {options.host} port {options.port}: {error}")
    host = f"[{options.host}]" if listener.family == socket.AF_INET6 else options.host
    sys.stdout.write(f"listening on http://{host}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(create_app(), log_config=None)).run(sockets=[listener])
    return 0


def _solvers(options: argparse.Namespace) -> int:
    from convexlayer.solvers.registry import available

    rows = [("solver", "package", "installed", "quadratic", "cones")]
    rows += [
        (
            info.name,
            info.package,
            "yes" if info.installed else "no",
            "yes" if info.quadratic else "no",
            ", ".join(sorted(info.cones)),
        )
        for info in available()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return 0


def _compile(options: argparse.Namespace) -> int:
    from convexlayer import compiled

    started = time.monotonic()
    compiled.prepare(wait=True)
    places = [compiled.folder(part) for part in compiled.PARTS]
    if None in places:
        return _refuse("the kernels compile, but nowhere can they be kept: set NUMBA_CACHE_DIR to a folder of yours")
    sys.stdout.write(f"ready after {time.monotonic() - started:.1f} s, in {', '.join(map(str, places))}\n")
    return 0


def _gallery_list(options: argparse.Namespace) -> int:
    from convexlayer.gallery import available

    entries = available()
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        sys.stdout.write(f"{entry.name.ljust(width)}  {entry.title} ({entry.source})\n")
    return 0


def _gallery_run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from convexlayer.errors import ConvexLayerError
    from convexlayer.gallery import available, entry, write

    if options.all == bool(options.names):
        return _refuse("name the entries to run, or pass --all; `convexlayer gallery list` names them")
    try:
        chosen = available() if options.all else [entry(name) for name in options.names]
        for each in (progress := tqdm(chosen, unit="entry", disable=options.no_progress)):
            progress.set_postfix_str(each.name)
            write(each, options.output)
    except ConvexLayerError as error:
        return _refuse(str(error))
    sys.stdout.write(f"{len(chosen)} entries in {options.output}\n")
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {2**16 - 1}, got {port}")
    return port


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse(message: str) -> int:
    sys.stderr.write(f"convexlayer: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
