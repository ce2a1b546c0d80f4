"""The command line: ``convexlayer serve | keys | store | solvers | compile | gallery``.

Each command imports its dependencies when it runs, so that help and keys do not load torch.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from convexlayer import __version__

__all__ = ["main"]

_FAILED = 2
"""Exit status of a command that failed, as argparse uses it for invalid arguments."""

_MAX_PORT = 2**16 - 1
"""The highest TCP port."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; default that of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="convexlayer", description="Differentiable convex optimisation.")
    version = f"%(prog)s {__version__} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="command")

    _add_server_commands(commands)

    solvers = commands.add_parser("solvers", help="list the solvers, what they support, and whether they are installed")
    solvers.set_defaults(run=_solvers)

    kernels = commands.add_parser("compile", help="compile the kernels and store them in the kernel cache")
    kernels.set_defaults(run=_compile)

    gallery = commands.add_parser("gallery", help="reproduce experiments of the papers behind the nodes")
    gallery_commands = gallery.add_subparsers(required=True, metavar="command")
    gallery_list = gallery_commands.add_parser("list", help="list the entries")
    gallery_list.set_defaults(run=_gallery_list)
    gallery_run = gallery_commands.add_parser("run", help="run entries, and write figures (PNG) and numbers (JSON)")
    gallery_run.add_argument("names", nargs="*", metavar="NAME", help="entries to run")
    gallery_run.add_argument("--all", action="store_true", help="run all entries")
    gallery_run.add_argument("--output", type=Path, default=Path("gallery"), help="output folder (default %(default)s)")
    gallery_run.add_argument("--no-progress", action="store_true", help="hide the progress bar")
    gallery_run.set_defaults(run=_gallery_run)

    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _add_server_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``serve``, ``keys`` and ``store``; each accepts ``--settings`` and ``--store``."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--settings", metavar="FILE", help="settings file (TOML); environment variables override it")
    shared.add_argument("--store", metavar="FILE", help="database of problems, keys and usage")

    serve = commands.add_parser("serve", parents=[shared], help="serve problems over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument(
        "--port", type=_port, default=8000, help="port to listen on, 0 for any free port (default %(default)s)"
    )
    serve.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per GPU, at least 2)")
    serve.add_argument("--device", help="device of the workers: auto, cpu, cuda, or cuda:0,1")
    serve.add_argument("--insecure", action="store_true", help="listen on a public address without API keys")
    serve.set_defaults(run=_serve)

    keys = commands.add_parser("keys", help="create, list and revoke API keys")
    actions = keys.add_subparsers(required=True, metavar="action")
    create = actions.add_parser("create", parents=[shared], help="create a key and print its token once")
    create.add_argument("name", help="name of the key in `keys list`")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="request limit, overrides the setting")
    create.add_argument("--seconds-per-day", type=float, metavar="S", help="compute limit, overrides the setting")
    create.set_defaults(run=_create_key)
    listing = actions.add_parser("list", parents=[shared], help="list the keys")
    listing.set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", parents=[shared], help="revoke a key and delete its problems")
    revoke.add_argument("key", help="id of the key, begins with k_")
    revoke.set_defaults(run=_revoke_key)

    store = commands.add_parser("store", help="back up or restore the database")
    actions = store.add_subparsers(required=True, metavar="action")
    for name, run, text in (
        ("backup", _backup, "write a copy of the database to a new file"),
        ("restore", _restore, "replace the problems by those of a backup; keys and usage are merged"),
    ):
        action = actions.add_parser(name, parents=[shared], help=f"{text}; works while the server runs")
        action.add_argument("file", help="file of the backup")
        action.set_defaults(run=run)


def _run_server_command(options: argparse.Namespace, command: str, *arguments: object, **keywords: object) -> int:
    """Run a command of ``convexlayer_server``, imported here because the server is an optional dependency."""
    try:
        from convexlayer_server import commands
        from convexlayer_server.errors import ServerError
    except ImportError as error:
        return _fail(f"the server needs more packages ({error}): pip install 'convexlayer[server]'")
    names = ("settings", "store", "workers", "device")
    try:
        settings = commands.load_settings({name: getattr(options, name, None) for name in names})
        getattr(commands, command)(settings, *arguments, **keywords)
    except ServerError as error:
        return _fail(str(error))
    return 0


def _serve(options: argparse.Namespace) -> int:
    return _run_server_command(options, "serve", options.host, options.port, insecure=options.insecure)


def _create_key(options: argparse.Namespace) -> int:
    return _run_server_command(
        options, "create_key", options.name, options.requests_per_minute, options.seconds_per_day
    )


def _list_keys(options: argparse.Namespace) -> int:
    return _run_server_command(options, "list_keys")


def _revoke_key(options: argparse.Namespace) -> int:
    return _run_server_command(options, "revoke_key", options.key)


def _backup(options: argparse.Namespace) -> int:
    return _run_server_command(options, "backup", options.file)


def _restore(options: argparse.Namespace) -> int:
    return _run_server_command(options, "restore", options.file)


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
    from convexlayer.runtime import kernel_cache

    started = time.monotonic()
    kernel_cache.prepare(wait=True)
    places = [kernel_cache.folder(part) for part in kernel_cache.PARTS]
    if None in places:
        return _fail("no writable folder for the kernel cache: set NUMBA_CACHE_DIR to a writable folder")
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
        return _fail("name the entries to run, or pass --all; `convexlayer gallery list` lists them")
    try:
        chosen = available() if options.all else [entry(name) for name in options.names]
        for each in (progress := tqdm(chosen, unit="entry", disable=options.no_progress)):
            progress.set_postfix_str(each.name)
            write(each, options.output)
    except ConvexLayerError as error:
        return _fail(str(error))
    sys.stdout.write(f"{len(chosen)} entries in {options.output}\n")
    return 0


def _port(text: str) -> int:
    """Parse a TCP port.

    Raises:
        ArgumentTypeError: the text is not one; argparse adds the name of the option.
    """
    if not text.isdecimal() or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {_MAX_PORT}, got {text!r}")
    return int(text)


def _fail(message: str) -> int:
    """Write a message to standard error; return the exit status of a command that failed."""
    sys.stderr.write(f"convexlayer: {message}\n")
    return _FAILED


if __name__ == "__main__":
    sys.exit(main())
