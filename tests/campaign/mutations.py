"""Damage every kind of file that is read, in every way; the result is refused, or the same, never another one.

`python -m tests.campaign.mutations --count 1200 --out mutations.jsonl`. Outcomes:

- `refused`: a WorldgymError, or the sentence of a command, that names the file or its folder;
- `harmless`: the result is that of the undamaged file;
- `unverified`: another result where nothing can notice: a folder of others without checksums, or one of ours whose
  `manifest.json` was removed first, which says that the edit is wanted;
- `unnamed`, `SILENT`, `RAW`, `hang`: bad. A refusal that names no file, another result from a folder with hashes,
  any other exception, and a child that did not end or was killed.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import operators
from .harness import forked, go, learn, markdown, modules, options, prepare, said, wanted
from .subjects import SUBJECTS, Subject
from .workspace import Workspace, settle_settings

MEMORY = 4 * 2**30
BAD = ("unnamed", "SILENT", "RAW", "hang")
BARE = ("value", "number", "key gone", "key renamed", "key added", "array", "header", "swap")
"""Operators that are tried without the manifest too: what is read must then be checked by itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when a case is bad."""
    given = options("mutations", "Damage files and load them.", 1200, 24).parse_args(arguments)
    given.work = given.work.resolve()
    prepare()
    place = Workspace(given.work)
    names = [given.case] if given.case else cases(wanted(given), given.seed)
    used = {name.split(".")[0] for name in names if not given.only or name.startswith(given.only)}
    prepared = {name: _prepared(place, name) for name in sorted(used)}
    book = go(given, names, lambda name, keep: case(place, prepared, name, keep))
    rows = list(book.rows.values())
    print(markdown(rows, "subject") if rows else "")
    print("\n" + markdown(rows, "operator") if rows else "")
    return int(any(row["bad"] for row in rows))


def cases(count: int, seed: int) -> list[str]:
    """Names `SUBJECT.SEED.NUMBER`, every kind early."""
    dealt = [name for turn in range(4) for name, subject in SUBJECTS.items() if subject.weight > turn]
    return [f"{dealt[i % len(dealt)]}.{seed}.{i}" for i in range(count)]


def _prepared(place: Workspace, name: str) -> Any:
    """Make the undamaged folder when it is missing, and give its result."""
    from .kills import inputs_of_names

    subject = SUBJECTS[name]
    place.make(inputs_of_names(set(subject.needs)))
    settle_settings(place)
    folder = place.folder / "subjects" / name
    log, mark = folder.with_suffix(".log"), folder.with_suffix(".made")
    if mark.is_file():
        kept = json.loads(mark.read_text())
        learn(kept["modules"])
        return kept["result"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    ended = forked(lambda: subject.make(place, folder), log=log, seconds=300)
    if ended.code:
        raise SystemExit(f"the subject {name} can't be made: {said(log, 4)}")
    here = place.folder / "cases" / f"{name}-whole"
    shutil.copytree(folder, here, dirs_exist_ok=True)
    loaded = forked(lambda: [subject.use(here, place), modules()][1], log=log).value or []
    learn(loaded)
    twice = [_used(place, subject, folder, here, None) for _ in range(2)]
    if twice[0][0] != "ok" or twice[0] != twice[1]:
        raise SystemExit(f"the subject {name} is not steady: {twice}")
    mark.write_text(json.dumps({"result": twice[0][1], "modules": loaded}))
    return twice[0][1]


def _used(place: Workspace, subject: Subject, folder: Path, here: Path, damage: Any) -> tuple[str, Any]:
    """Copy a folder, damage it, use it; gives how it ended and what was said."""
    shutil.rmtree(here, ignore_errors=True)
    here.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, here)
    if damage is not None:
        damage(here)
    log = here.with_name(here.name + ".log")
    log.unlink(missing_ok=True)

    def work() -> Any:
        from worldgym.errors import WorldgymError

        try:
            value = subject.use(here, place)
        except WorldgymError as error:
            return {"refused": str(error)}
        return {"code": value} if isinstance(value, int) else {"ok": value}

    ended = forked(work, log=log, seconds=subject.seconds, memory=MEMORY)
    value = ended.value if isinstance(ended.value, dict) else {}
    if ended.late or ended.code < 0:
        return "hang", "it did not end" if ended.late else f"signal {-ended.code}"
    if "refused" in value:
        return "refused", value["refused"]
    if value.get("code"):
        return "refused", said(log, 2)
    if "ok" in value:
        return "ok", value["ok"]
    return "RAW", said(log, 3)


def case(place: Workspace, whole: dict[str, Any], name: str, keep: bool) -> dict[str, Any]:
    """Run one case."""
    import time

    began, rng = time.monotonic(), random.Random(name)
    which = name.split(".")[0]
    subject, folder = SUBJECTS[which], place.folder / "subjects" / which
    here = place.folder / "cases" / name
    row: dict[str, Any] = {"subject": which}

    def damage(root: Path) -> None:
        row.update(_damage(root, subject, rng))

    how, told = _used(place, subject, folder, here, damage)
    if how == "ok":
        same = told == whole[which]
        how = "harmless" if same else "SILENT" if row["sealed"] else "unverified"
    elif how == "refused" and not any(_named(told, file, here) for file in (row["file"], _other(row["how"]))):
        how = "unnamed"
    bad = how in BAD
    row["outcome"] = f"{how}: {row['file']}, {row['operator']} ({row['how']}): {told}" if bad else how
    if not bad and how == "refused":
        row["said"] = str(told)[:300]
    if not keep:
        shutil.rmtree(here, ignore_errors=True)
        here.with_name(here.name + ".log").unlink(missing_ok=True)
    return {**row, "bad": bad, "seconds": round(time.monotonic() - began, 2)}


def _damage(root: Path, subject: Subject, rng: random.Random) -> dict[str, Any]:
    files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    if subject.only is not None:
        files = [file for file in files if Path(file).name in subject.only and "/" not in file]
    kinds = sorted({Path(file).suffix for file in files})
    for _ in range(400):
        kind = rng.choice(kinds)  # every kind of file as often, whatever their numbers
        file = rng.choice([name for name in files if Path(name).suffix == kind])
        operator = rng.choice(operators.MEANING if rng.random() < 0.5 else list(operators.OPERATORS))
        bare = operator in BARE and Path(file).name != "manifest.json" and rng.random() < 0.5
        manifest = (root / file).parent / "manifest.json"
        bare = bare and subject.sealed and _is_ours(manifest)
        how = operators.mutate(root, file, operator, rng)
        if how is None:
            continue
        if bare:
            manifest.unlink()
        sealed = subject.sealed and not bare
        return {"file": file, "operator": operator, "how": how, "sealed": sealed}
    raise SystemExit(f"nothing could be damaged in {root}")


def _is_ours(manifest: Path) -> bool:
    return manifest.is_file() and '"files"' in manifest.read_text(errors="replace")


def _other(how: str) -> str:
    """The file that the damaged one has changed places with, or ""."""
    return how.removeprefix("swapped with ") if how.startswith("swapped with ") else ""


def _named(told: Any, file: str, here: Path) -> bool:
    names = {Path(file).name, Path(file).parent.name or here.name, here.name}
    return any(name and re.search(re.escape(name), str(told)) for name in names)


if __name__ == "__main__":
    sys.exit(main())
