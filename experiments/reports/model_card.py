"""The model card of a bundle: README.md with its parts, tasks, data, measured trust, and the commands that made it.

Example::

    from experiments.reports.model_card import model_card
    folder = Path("runs/metaworld/metaworld-small")
    model_card(folder, read_card(folder), gate=json.loads(Path("runs/gate.json").read_text()))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "<!-- written by `worldgym card`; a card without this line is kept -->"
ABOUT = {
    "world_model": "predicts the frames of imagined episodes",
    "judge": "probability that the instruction has been carried out, from the latest frames",
    "judge_latent": "judge that reads latents in place of frames",
    "judge_open_clip": "open_clip model as a judge (extra `clip`)",
    "policy_sft": "policy of supervised fine-tuning, with which RL starts",
    "probe": "reads positions off frames; measures world models",
    "starts.npz": "first frames of imagined episodes, taken from logs",
    "demos.npz": "demonstrations of the SFT policy, for self-imitation and the BC-only control",
}


def model_card(
    folder: Path,
    card: Mapping[str, Any],
    gate: Mapping[str, Any] | None = None,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the text of the card.

    Args:
        folder: the bundle.
        card: its `card.json`.
        gate: what `worldgym bench closed-loop --json` wrote; no section on trust if None.
        stages: finished stages by name, each with `line` (command) and `seconds`, as in `build.json`; no section on the
            commands if None.
    """
    data = card.get("data") or {}
    of = f"of the suite `{card['suite']}`" if "suite" in card else "of recordings, without a simulator behind it"
    about = [
        f"A learned simulator {of}: its parts, and the frames that imagined episodes begin from. Trained on "
        f"{card.get('real_episodes')} logged episodes; licence {card.get('licence')}. Made by "
        f"`{card.get('command')}` with worldgym {card.get('worldgym')}.",
    ]
    sections = [f"# {card.get('name', folder.name)}", MARK, *about, _parts(folder)]
    sections += [f"**Covers** {_listed(card.get('tasks', ()))}."]
    if thin := card.get("tasks_thin"):
        sections += [
            f"**Left out**: {_listed(thin)}. Seen in training, but imagined success there is not reliable (below); "
            "demo, evaluation and claims skip them unless they are named."
        ]
    sections += ["## Data", *_data(data)]
    if gate is not None:
        sections += ["## Trust in closed loop", *_gate(gate)]
    if stages:
        sections += ["## Commands", _commands(stages, folder.parent)]
    return "\n\n".join(sections) + "\n"


def _parts(folder: Path) -> str:
    rows = ["| part | what | size |", "|---|---|---|"]
    for entry in sorted(folder.iterdir()):
        if entry.name not in ABOUT:
            continue
        files = [file for file in entry.rglob("*") if file.is_file()] if entry.is_dir() else [entry]
        count = sum(_parameters(file) for file in files if file.suffix == ".safetensors")
        what = ABOUT[entry.name] + (f"; {count / 1e6:.1f} M parameters" if count else "")
        name = f"`{entry.name}/`" if entry.is_dir() else f"`{entry.name}`"
        rows.append(f"| {name} | {what} | {sum(file.stat().st_size for file in files) / 1e6:.1f} MB |")
    return "\n".join(rows)


def _parameters(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118


def _data(data: Mapping[str, Any]) -> list[str]:
    rows = ["| behaviour | episodes | successes |", "|---|---|---|"]
    successes = data.get("successes_by_behaviour") or {}
    episodes = data.get("episodes_by_behaviour") or {}
    rows += [f"| {name} | {count} | {successes.get(name, 0)} |" for name, count in sorted(episodes.items())]
    tasks = ", ".join(f"{task} {count}" for task, count in sorted((data.get("episodes_by_task") or {}).items()))
    text = [f"Episodes by task: {tasks}."] if tasks else []
    if demos := data.get("demonstrations"):
        text.append(f"The SFT policy learned where to go from {demos} demonstrations.")
    return ["\n".join(rows), *text]


def _gate(gate: Mapping[str, Any]) -> list[str]:
    policies = ", ".join(f"`{Path(name).name}`" for name in gate["policies"])
    rows = ["| task | episodes | precision | recall |", "|---|---|---|---|"]
    for task, row in [*gate["by_task"].items(), ("**all**", gate["all"])]:
        rows.append(f"| {task} | {row['episodes']} | {_rate(row, 'precision')} | {_rate(row, 'recall')} |")
    return [
        f"Policies ({policies}) acted on imagined frames until the judge reported success; the same actions were then "
        f"executed in the real domain from the same starts (seeds from {gate['start_seed']}). 95 % Wilson intervals.",
        "\n".join(rows),
    ]


def _rate(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "undefined"
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def _commands(stages: Mapping[str, Mapping[str, Any]], out: Path) -> str:
    """Commands and durations; paths of the build's folder are written as `OUT`."""
    rows = ["| minutes | command |", "|---|---|"]
    for stage in stages.values():
        if "seconds" in stage:
            line = str(stage["line"]).replace(str(out), "OUT")
            rows.append(f"| {stage['seconds'] / 60:.1f} | `{line}` |")
    return "\n".join(rows)


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "no task"
