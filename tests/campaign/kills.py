"""Kill every long command at random moments and before every kind of change of the file system; it must go on alike.

`python -m tests.campaign.kills --count 240 --out kills.jsonl`. A case is one command at toy size, killed one to four
times, then run to its end, and once more. It is `equal` when tensors, JSON, episodes and TensorBoard's points are
those of a run that was not killed, apart from times, and no temporary file is left.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import compare, deaths
from .harness import Ended, forked, go, learn, markdown, modules, options, prepare, raw, said, wanted
from .workspace import COMMANDS, Workspace, command, settle_settings

SECONDS = 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a case is bad."""
    parser = options("kills", "Kill long commands and compare what they end with.", 240, 13)
    given = parser.parse_args(arguments)
    given.work = given.work.resolve()
    prepare()
    place = Workspace(given.work)
    names = cases(wanted(given), given.seed)
    chosen = [given.case] if given.case else [n for n in names if not given.only or n.startswith(given.only)]
    used = {name.split(".")[0] for name in chosen}
    place.make(inputs_of(used))
    settle_settings(place)
    book = go(given, names, lambda name, keep: case(place, name, keep))
    rows = list(book.rows.values())
    print(markdown(rows, "command") if rows else "")
    return int(any(row["bad"] for row in rows))


def inputs_of(commands: set[str]) -> tuple[str, ...]:
    """Inputs that these commands need, and what those are made of."""
    need = {part[1:-1] for name in commands for part in COMMANDS[name].words.split() if part.startswith("{")}
    return inputs_of_names(need | ({"bundle"} if "claims" in commands else set()))


def inputs_of_names(need: set[str]) -> tuple[str, ...]:
    """These inputs and what they are made of."""
    made = {
        "tokenizer": ("data",), "world": ("tokenizer",), "judge": ("data",), "policy": ("data",), "probe": ("world",),
        "latent": ("world",), "imported": ("lerobot",), "whole": ("judge", "policy", "probe", "latent"),
    }  # fmt: skip
    while more := {base for name in need for base in made.get(name, ())} - need:
        need = need | more
    return tuple(sorted(need))


def cases(count: int, seed: int) -> list[str]:
    """Names `COMMAND.KIND.SEED.NUMBER`; the first ones hold every command."""
    dealt = [name for turn in range(4) for name, tried in COMMANDS.items() if tried.weight > turn]
    kinds = ("change", "moment")
    rounds = [dealt[i % len(dealt)] for i in range(count)]
    return [f"{name}.{kinds[(i + i // len(dealt)) % 2]}.{seed}.{i}" for i, name in enumerate(rounds)]


def baseline(place: Workspace, name: str) -> dict[str, Any]:
    """Facts of the uninterrupted run, what differs between two of them, its seconds and its number of changes."""
    kept = place.folder / "baselines" / f"{name}.json"
    if kept.is_file():
        data = dict(json.loads(kept.read_text()))
        learn(data["modules"])
        return data
    tried = COMMANDS[name]
    found, seconds, changes, loaded = [], [], 0, []
    for turn in range(2):
        here = place.folder / "baselines" / f"{name}-{turn}-{os.getpid()}"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        ended = run(place, name, here, count=True)
        if ended.code or not isinstance(ended.value, dict):
            raise SystemExit(f"{name} does not run uninterrupted: {said(here.with_suffix('.log'), 6)}")
        seconds.append(ended.seconds)
        changes, loaded = ended.value["changes"], ended.value["modules"]
        learn(loaded)
        found.append(read(here, tried.skip))
        shutil.rmtree(here)
    unsteady = compare.differences(found[0], found[1])
    data = {
        "facts": found[0],
        "unsteady": unsteady,
        "seconds": min(seconds),
        "changes": changes,
        "modules": loaded,
    }
    aside = kept.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(data))
    aside.replace(kept)
    if unsteady:
        print(
            f"{name}: two uninterrupted runs differ in {len(unsteady)} facts: {unsteady[:6]}", file=sys.stderr
        )
    return data


def read(here: Path, skip: str | None) -> dict[str, str]:
    """Facts of a case's folder, read in a child: the parent must stay free of threads."""
    ended = forked(lambda: compare.facts(here, skip), log=here.with_suffix(".log"), seconds=SECONDS)
    if not isinstance(ended.value, dict):
        return {"unreadable": said(here.with_suffix(".log"))}
    return ended.value


def run(
    place: Workspace,
    name: str,
    here: Path,
    *,
    at: int | None = None,
    error: int | None = None,
    until: float | None = None,
    count: bool = False,
    prepared: Any = None,
) -> Ended:
    """Run a command in folder `here`; its output goes to `here.log`.

    Args:
        place: the inputs.
        name: of the command.
        here: the case's folder.
        at: the change of the file system at which it dies or fails.
        error: fail with this errno instead of dying.
        until: seconds after which it is killed.
        count: give the number of changes as the child's value.
        prepared: called in the child first.
    """
    line = COMMANDS[name].line(place, here)

    def work() -> Any:
        os.chdir(here)
        if prepared is not None:
            prepared()
        seen = deaths.watch(here, at, error) if count or at is not None else None
        code = command(line)
        return (
            {"changes": seen.count, "modules": modules()}
            if count and seen is not None and code == 0
            else code
        )

    return forked(work, log=here.with_suffix(".log"), seconds=SECONDS, until=until)


def case(place: Workspace, name: str, keep: bool) -> dict[str, Any]:
    """Run one case."""
    which, how, *_ = name.split(".")
    whole, rng = baseline(place, which), random.Random(name)
    here = place.folder / "cases" / name
    log = here.with_suffix(".log")
    shutil.rmtree(here, ignore_errors=True)
    log.unlink(missing_ok=True)
    here.mkdir(parents=True)
    moments: list[str] = []
    total = 0.0
    row: dict[str, Any] = {"command": which, "kind": how}
    for _ in range(rng.choice((1, 2, 3, 4))):
        if how == "change":
            at = rng.randint(1, max(1, whole["changes"]))
            ended = run(place, which, here, at=at)
            moments.append(f"change {at} of {whole['changes']}")
        else:
            at_second = rng.uniform(0.02, 1.0) * whole["seconds"]
            ended = run(place, which, here, until=at_second)
            moments.append(f"{at_second:.2f} s")
        total += ended.seconds
        killed = ended.code in (-signal.SIGKILL, deaths.KILLED)
        moments[-1] += "" if killed else " (it had ended)"
        if not killed and ended.code:
            break
    problem = _went_on(place, which, here, whole)
    row |= {"moments": moments, "outcome": problem or "equal", "bad": problem is not None}
    row["seconds"] = round(total + float(row.pop("more", 0.0)), 2)
    if not keep and problem is None:
        shutil.rmtree(here)
        log.unlink(missing_ok=True)
    return row


def _went_on(place: Workspace, which: str, here: Path, whole: dict[str, Any]) -> str | None:
    """What is wrong with the run that goes on; None when it ends as the uninterrupted one."""
    log = here.with_suffix(".log")
    log.unlink(missing_ok=True)
    ended = run(place, which, here)
    if ended.late:
        return "hang: it did not end"
    if ended.code:
        return f"{'raw traceback' if raw(log) else 'refused'}: {said(log, 2)}"
    found = read(here, COMMANDS[which].skip)
    differ = compare.differences(whole["facts"], found, frozenset(whole["unsteady"]))
    if differ:
        return f"differs: {', '.join(differ[:6])} ({len(differ)} facts)"
    falling = [fact for fact, value in found.items() if fact.endswith(".rising") and value != "True"]
    if falling:
        return f"differs: steps of {falling[0]} do not rise"
    if compare.leftovers(here):
        run(place, which, here)
        if left := compare.leftovers(here):
            return f"leftovers: {', '.join(left[:3])}"
    return None


if __name__ == "__main__":
    sys.exit(main())
