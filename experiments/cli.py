"""The command `worldgym`: finds the module of a command, reads its config from the command line, and runs it.

A command is a module of `experiments.commands` with a frozen dataclass config and `run(config) -> int`; tyro generates
the options and their help from the dataclass. Only the module of the called command is imported. `worldgym --help` is
therefore instant, and a missing package affects only the commands that need it. Errors with an explanation (a
`WorldgymError`, a full disk) print only their message and exit with 2. Ctrl-C exits with 130 and shows how to continue.

Example::

    worldgym info
    worldgym demo --out runs/demo
    worldgym train world-model --help
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from experiments.command_table import COMMANDS, GROUPS, Command
from experiments.compute import placing
from experiments.earlier_options import current_options
from experiments.pipelines.checks import check_numbers, expand_home
from worldgym import __version__
from worldgym.errors import WorldgymError

OK, FAILED, INTERRUPTED, PIPE_CLOSED = 0, 2, 130, 141


def usage(prefix: Sequence[str] = ()) -> str:
    """List of all commands, or of those that start with `prefix`."""
    chosen = [words for words in COMMANDS if words[: len(prefix)] == tuple(prefix)]
    width = max(len(" ".join(words)) for words in chosen)
    lines = [f"usage: worldgym {' '.join([*prefix, '...'])}  (worldgym {__version__})"]
    for heading, firsts in GROUPS.items():
        rows = [words for first in firsts for words in chosen if words[0] == first]
        lines += ["", f"{heading}:"] if rows and not prefix else [""] * bool(rows)
        lines += [f"  worldgym {' '.join(words).ljust(width)}  {COMMANDS[words].help}" for words in rows]
    return "\n".join(
        [*lines, "", "Options of a command: worldgym COMMAND --help. Set WORLDGYM_DEBUG=1 to see tracebacks."]
    )


def find_command(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]] | None:
    """Split `arguments` into the words of a known command and the rest; None if no command matches."""
    for words in COMMANDS:
        if tuple(arguments[: len(words)]) == words:
            return words, list(arguments[len(words) :])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code: 0 success, 2 a known error with a message, 130 Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        _say(sys.stdout, f"worldgym {__version__}")
        return OK
    if not given or given[0] in ("-h", "--help", "help"):
        _say(sys.stdout, usage())
        return OK
    found = find_command(given)
    if found is None:
        return _explain_unknown(given)
    words, rest = found
    others = threading.excepthook
    threading.excepthook = _quietly(others)
    try:
        return _run(words, rest)
    except KeyboardInterrupt:
        _say(sys.stderr, "\n" + _after_interrupt(words, rest))
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has ended, as in `worldgym rl --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (WorldgymError, OSError, ModuleNotFoundError, MemoryError) as error:
        message = _explain(error)
        if message is None or os.environ.get("WORLDGYM_DEBUG"):
            raise
        _say(sys.stderr, f"worldgym {' '.join(words)}: {message}")
        return FAILED
    finally:
        if arguments is not None:  # called from Python; otherwise the process and its threads end
            threading.excepthook = others


def _quietly(others: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A `threading.excepthook` that reports in one line a file that TensorBoard's thread could not write."""

    def hook(failed: Any) -> None:
        if isinstance(failed.exc_value, OSError) and _explain_os(failed.exc_value):
            logging.getLogger(__name__).warning(
                "a file could not be written in the background: %s", failed.exc_value
            )
        else:
            others(failed)

    return hook


def _run(words: tuple[str, ...], rest: list[str]) -> int:
    from worldgym.utils.gl import choose_backend, require_gl
    from worldgym.utils.progress import setup_logging
    from worldgym.utils.shadow import require_own_packages

    command = COMMANDS[words]
    if command.module != "info":  # `info` reports a shadowed package instead of failing
        require_own_packages()
    choose_backend()
    config, run = parse_command(words, rest)
    if hasattr(config, "device"):
        placing(config)  # a missing device is reported before anything is loaded or written
    if command.draws:
        require_gl()
    setup_logging()
    logging.captureWarnings(True)
    return int(run(config) or OK)


def parse_command(words: tuple[str, ...], rest: list[str]) -> tuple[Any, Callable[[Any], int]]:
    """Parse the options of a command.

    Args:
        words: a key of `COMMANDS`.
        rest: its options.

    Returns:
        the config, and the function that runs it.
    """
    config_class, run = _load(COMMANDS[words])
    rewrite = getattr(config_class, "rewrite_arguments", list)
    name = f"worldgym {' '.join(words)}"
    options = current_options(config_class, expand_home(rest), lambda line: _say(sys.stderr, f"{name}: {line}"))
    config = _parse(config_class, rewrite(options), name)
    check_numbers(config)
    return config, run


def _parse(config_class: type[Any], arguments: list[str], name: str) -> Any:
    """Parse `arguments` into a config; an invalid value raises the config's own error."""
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(config_class, args=arguments, prog=name)
    except SystemExit as ended:
        # tyro would draw a box around such an error, which breaks the commands in its text.
        cause: BaseException | None = ended
        while cause is not None:
            if isinstance(cause, WorldgymError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        if captured.getvalue():
            _say(sys.stderr, captured.getvalue().rstrip())
        raise


def _load(command: Command) -> tuple[type[Any], Callable[[Any], int]]:
    module = importlib.import_module(f"experiments.commands.{command.module}")
    return getattr(module, command.config), getattr(module, command.run)


def _explain_unknown(given: list[str]) -> int:
    groups = {words[0] for words in COMMANDS if len(words) > 1}
    if given[0] in groups:
        if given[1:2] in (["-h"], ["--help"]):
            _say(sys.stdout, usage(given[:1]))
            return OK
        if len(given) > 1:
            _say(sys.stderr, f"worldgym: there is no command {' '.join(given[:2])!r}.\n")
        _say(sys.stderr, usage(given[:1]))
        return FAILED
    import difflib

    close = difflib.get_close_matches(given[0], sorted({words[0] for words in COMMANDS}), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    _say(sys.stderr, f"worldgym: there is no command {given[0]!r}.{hint}\n\n{usage()}")
    return FAILED


def _explain(error: BaseException) -> str | None:
    """Return the message for a known kind of error; None if the traceback is needed."""
    if isinstance(error, WorldgymError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({str(error) or 'no details'}). Use fewer episodes, smaller batches or a larger machine."
    if isinstance(error, OSError):
        return _explain_os(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package not in ("worldgym", "envs", "rewards", "agents", "experiments"):
            from worldgym.registry import missing_module

            return missing_module(error.name)
    return None


def _explain_os(error: OSError) -> str | None:
    """Describe an operating-system error and what to do; None if it does not concern a file."""
    where = error.filename if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = f" while writing {where}" if where else ""
        what = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}.get(
            error.errno, "a file would become larger than this system allows"
        )
        return f"{what}{place}. What was saved before is intact; free some space and type the command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = f"no permission for {where}" if where else "no permission to write"
        return (
            f"{what} ({error.strerror}). What was saved before is intact; choose another folder with --out."
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open. Raise the limit with `ulimit -n 4096` and type the command again."
    if not where:
        return None
    hints = {
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "a part of the path is a file; give another path",
        errno.EISDIR: "it is a folder; give a file",
        errno.EEXIST: "it exists already; give another --out",
        errno.ENAMETOOLONG: "the name is too long; give a shorter one",
        errno.EIO: "the disk or network drive failed; check it and type the command again",
    }
    hint = hints.get(error.errno or 0, "check the path and type the command again")
    return f"{where}: {error.strerror or error}; {hint}"


def _after_interrupt(words: tuple[str, ...], rest: list[str]) -> str:
    line = shlex.join(["worldgym", *words, *rest])
    if COMMANDS[words].resumes:
        return f"Stopped. To continue from the last checkpoint, type the same command again:\n  {line}"
    return f"Stopped. This command keeps no checkpoint. To run it again:\n  {line}"


def _say(stream: TextIO, text: str) -> None:
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:  # e.g. `worldgym info | head` closed the pipe; nobody reads the output
        sys.stderr.close()


if __name__ == "__main__":
    sys.exit(main())
