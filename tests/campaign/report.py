"""Write the tables of docs/reliability.md from the files of finished cases.

`python -m tests.campaign.report --in campaign --out docs/reliability.md`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import kind, markdown, read_rows

PARTS = {
    "kills": (
        "Kills",
        "command",
        "A command at toy size gets SIGKILL at a random moment (`moment`), or ends before the n-th change of the "
        "file system (`change`: rename, replace, unlink, mkdir, rmdir, fsync, opening a file for writing, writing "
        "safetensors or parquet). This happens one to four times in a row; then the command is typed again and runs "
        "to its end. Checkpoints are written at every step, so that there is something to interrupt.",
        {
            "equal": "tensors, JSON without times, episodes and the steps that TensorBoard shows are those of a run "
            "that was never stopped, and no temporary file is left",
            "differs": "bad: something else came out",
            "leftovers": "bad: temporary files are left after one more run",
            "refused": "bad: the command does not go on",
            "raw traceback": "bad: the command does not go on, and does not say why in a sentence",
            "hang": "bad: it did not end",
        },
    ),
    "mutations": (
        "Damaged files",
        "subject",
        "One file is damaged by one operator: the lowest bit of a weight, any bit, a cut, zeros, a byte more or less, "
        "a swap of two files, a missing file, a folder in its place, other values, types, keys and versions in JSON, "
        "other encodings, arrays of other shapes and types or that claim 36 GiB, other headers of safetensors. The "
        "file is then loaded and something that depends on all of it is computed, in a process with a limit of time "
        "and memory. Half of the damage that a hash would notice is done without the `manifest.json`, so that what is "
        "read must be checked by itself.",
        {
            "refused": "an error of the package, or the sentence of a command, that names the file or its folder",
            "harmless": "the result is that of the undamaged file",
            "unverified": "another result where nothing can notice: recordings of others, which carry no checksums, "
            "or a folder whose manifest was removed first, which says that the edit is wanted",
            "unnamed": "bad: refused, but the file is not named",
            "SILENT": "bad: another result, although the folder carries hashes",
            "RAW": "bad: an error that is none of the package's",
            "hang": "bad: it did not end, or was killed",
        },
    ),
    "disks": (
        "Full and read-only disks",
        "command",
        "Writing fails from a command's start, or after a kill: a small tmpfs (`full`), an error from the n-th change "
        "on (`no-space`, `quota`), a file system mounted read-only, a limit of the size of files. Then there is space "
        "and the command is typed again; then the same fault meets the finished run.",
        {
            "explained": "a sentence and exit code 2, the results of an undisturbed run once there was space, and a "
            "finished run as it was",
            "not reached": "the command ended before it met the fault, and its results are right",
            "raw traceback": "bad",
            "goes on differently": "bad: other results once there was space",
            "does not go on": "bad: the command is refused although there is space",
            "a finished run is damaged": "bad: what was saved before is gone or changed",
            "hang": "bad: it did not end",
        },
    ),
    "judge_endpoint": (
        "Endpoints of judges that misbehave",
        "fault",
        "An episode whose only verdict is asked of a server that misbehaves in one way: hangs, drips a byte at a "
        "time, closes the connection, cuts its answer off, sends HTML, other JSON, 64 MB, a wrong length or compressed "
        "zeros, "
        "redirects, refuses, asks to wait, echoes the key. A verdict has 0.6 s.",
        {
            "scored": "a readable answer, and the reward is its score",
            "invalid": "no verdict: the episode says so, and is to be dropped",
            "silent": "bad: a failure without a verdict",
            "wrong": "bad: another reward than the score",
            "late": "bad: the verdict took longer than its deadline",
            "key told": "bad: the key is in a log, an error or the judge's own description",
            "raw error": "bad: the step failed",
        },
    ),
    "rendering": (
        "Threads and processes that render",
        "method",
        "The tabletop is drawn in a fresh process: in every kind of thread and child process, after every order of "
        "imports, under every `MUJOCO_GL`.",
        {
            "same picture": "bit for bit that of the main thread",
            "clear error": "a RenderingError that says what to type, where no picture can be had",
            "black": "bad",
            "other picture": "bad",
            "neighbour changed": "bad: a picture of Gymnasium's own environment is another one",
            "raw error": "bad: an error that is none of the package's",
            "crash": "bad",
            "hang": "bad",
        },
    ),
    "processes": (
        "Processes of killed sweeps",
        "",
        "The driver of `worldgym sweep` gets SIGKILL; processes that it began are counted for 20 s.",
        {"none left": "every process ended", "left": "bad: some did not end"},
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.report", description=__doc__)
    parser.add_argument("--in", dest="folder", type=Path, required=True, help="folder of KIND.jsonl files")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--note", default="", help="how the rows came about, said at the top of the page")
    given = parser.parse_args(arguments)
    given.out.write_text(page(given.folder, given.note))
    return 0


def page(folder: Path, note: str = "") -> str:
    """The text of docs/reliability.md."""
    parts = [HEAD, *([note + "\n"] if note else [])]
    for name in PARTS:
        rows = list(read_rows(folder / f"{name}.jsonl"))
        if rows:
            parts.append(_part(name, rows))
    return "\n".join(parts)


def _part(name: str, rows: list[dict[str, Any]]) -> str:
    title, group, about, meanings = PARTS[name]
    group = group or next((key for key in ("fault", "kind", "case", "id") if key in rows[0]), "id")
    bad = sum(bool(row.get("bad")) for row in rows)
    minutes = sum(float(row.get("seconds", 0)) for row in rows) / 60
    lines = [f"## {title}", "", *([about, ""] if about else [])]
    kills = [m for row in rows for m in row.get("moments", []) if "it had ended" not in m]
    counted = f"{len(rows)} cases with {len(kills)} kills" if kills else f"{len(rows)} cases"
    lines += [f"{counted}, {bad} bad, {minutes:.0f} minutes of {_versions(rows)}.", ""]
    lines += [f"    python -m tests.campaign.{name} --count {len(rows)} --out {name}.jsonl", ""]
    lines += [markdown(rows, group), ""]
    for other in ("kind", "operator"):
        if other in rows[0] and other != group:
            lines += [markdown(rows, other), ""]
    seen = {kind(row) for row in rows}
    lines += [
        f"- `{word}`: {meaning}." for word, meaning in meanings.items() if word in seen or not meaning.startswith("bad")
    ]
    if bad:
        lines += ["", "Bad cases:", ""]
        lines += [f"- `{row['id']}`: {str(row['outcome'])[:240]}" for row in rows if row.get("bad")]
    return "\n".join(lines) + "\n"


def _versions(rows: list[dict[str, Any]]) -> str:
    found = sorted(
        {", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows if "versions" in row}
    )
    return "one core; " + " | ".join(found) if found else "one core"


HEAD = """# Reliability: what was tried, and what came of it

Every number here is made by the tools in `tests/campaign/`, and this page by `python -m tests.campaign.report`.
`make campaign` runs all of them; each goes on where it stopped. A case is drawn from its name alone, so
`python -m tests.campaign.kills --case NAME --out x.jsonl` repeats it and keeps its files.
"""

if __name__ == "__main__":
    sys.exit(main())
