"""Page skeleton and style of `report.html`, filled in by `experiments.reports.html`.

This is a module instead of a data file, so that every kind of installation includes it.

Example::

    page = PAGE.substitute(title="worldgym demo", style=STYLE, body="<p>hello</p>")
"""

from __future__ import annotations

from string import Template

STYLE = """
:root { --ink:#1c2330; --soft:#5b6475; --line:#e3e7ee; --back:#f6f7f9; --card:#ffffff; --blue:#2458c5;
  --green:#1f8a5b; --red:#c83030; }
* { box-sizing:border-box; }
body { margin:0; background:var(--back); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",
  Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:940px; margin:0 auto; padding:32px 20px 64px; }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 6px; }
h2 { font-size:1.18rem; margin:0 0 10px; }
h3 { font-size:1rem; margin:18px 0 6px; }
p { margin:0 0 10px; max-width:72ch; }
.lead { color:var(--soft); margin-bottom:22px; }
.note { color:var(--soft); font-size:.88rem; }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:20px 22px;
  margin:16px 0; }
.headline { display:flex; flex-wrap:wrap; gap:14px; margin-top:14px; }
.headline div { flex:1 1 150px; border:1px solid var(--line); border-radius:8px; padding:12px 14px; }
.headline b { display:block; font-size:1.65rem; line-height:1.2; font-variant-numeric:tabular-nums; }
.headline span { color:var(--soft); font-size:.85rem; }
.good b, .good { color:var(--green); } .bad b, .bad { color:var(--red); }
.headline .good span, .headline .bad span { color:var(--soft); }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:7px 10px; border-bottom:1px solid var(--line); vertical-align:top; }
th { color:var(--soft); font-weight:600; font-size:.83rem; }
td.n, th.n { text-align:right; white-space:nowrap; }
tr.key td { font-weight:600; }
td small { color:var(--soft); font-weight:400; }
.chart { width:100%; height:auto; display:block; }
.chart .grid { stroke:var(--line); } .chart .zero { stroke:var(--ink); stroke-dasharray:4 3; }
.chart .tick { fill:var(--soft); font-size:11px; } .chart .label { fill:var(--ink); font-size:13px; }
.legend { display:flex; flex-wrap:wrap; gap:4px 16px; font-size:.85rem; color:var(--soft);
  margin:4px 0 12px; }
.legend i { display:inline-block; width:11px; height:11px; border-radius:3px; margin-right:6px; }
.flow { display:flex; flex-wrap:wrap; gap:8px; align-items:stretch; margin:14px 0 6px; counter-reset:step; }
.flow div { flex:1 1 170px; border:1px solid var(--line); border-left:4px solid var(--blue);
  border-radius:6px;
  padding:9px 12px; font-size:.9rem; }
.flow div b { display:block; } .flow div b::before { counter-increment:step; content:counter(step) ". "; }
.videos { display:grid; grid-template-columns:repeat(auto-fill,minmax(290px,1fr)); gap:14px; }
figure { margin:0; border:1px solid var(--line); border-radius:8px; overflow:hidden; }
figure img { width:100%; display:block; }
figcaption { padding:7px 10px; font-size:.85rem; }
.tag { display:inline-block; border-radius:4px; padding:0 6px; font-size:.78rem; color:#fff;
  background:var(--soft); }
.tag.fp, .tag.fn { background:var(--red); } .tag.tp, .tag.tn { background:var(--green); }
.matrix td { border:1px solid var(--line); text-align:center; font-size:.9rem; }
.matrix td b { display:block; font-size:1.5rem; } .matrix th { text-align:center; }
.matrix td.wrong b { color:var(--red); } .matrix td.right b { color:var(--green); }
pre { background:var(--back); border:1px solid var(--line); border-radius:6px; padding:10px 12px;
  overflow-x:auto;
  font-size:.86rem; }
code { font-size:.9em; background:var(--back); border-radius:4px; padding:1px 4px; } pre code { padding:0; }
details summary { cursor:pointer; color:var(--soft); }
.two { display:grid; grid-template-columns:repeat(auto-fit,minmax(280px,1fr)); gap:8px 26px;
  align-items:start; }
"""

PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
"""
)

EXPLANATION = """
<p>A robot policy reads a camera image and an instruction such as <i>"$instruction"</i>, and moves a gripper.
It was trained on demonstrations (<b>SFT</b>) and still fails often. Reinforcement learning could improve it, but
collecting episodes on a robot is slow. Here the policy was fine-tuned in <b>imagination</b>: a video world model,
trained only on logged robot episodes, predicts the camera image after each action.</p>
<div class="flow">
<div><b>Imagine</b>From a logged frame, the policy attempts the task $group times inside the world model, without
simulator or robot.</div>
<div><b>Judge</b>A learned judge (<code>$judge</code>) reads the imagined frames and the instruction, and decides
whether the task succeeded.</div>
<div><b>Improve</b>GRPO makes successful attempts more likely and failed ones less likely. Successful attempts are
also imitated, together with the demonstrations. $iterations rounds.</div>
<div><b>Check</b>The policies before and after training are measured in Real, the stand-in for the robot, which is
not used during this training.</div>
</div>
<p class="note">The controls test other explanations of an improvement: more cloning (<b>BC only</b>), or less random
actions (<b>sharpened</b>). The <b>language-blind</b> control gives the improved policy the instruction of another
start. Its success should be low; otherwise the policy ignores its instruction.</p>
"""

ARM_LABELS = {
    "sft": "SFT (before)",
    "imagined_rl": "Imagined RL (after)",
    "bc_only": "BC only, same updates",
    "sft_sharpened": "SFT sharpened",
    "language_blind": "Language-blind control",
}

ARM_NOTES = {
    "sft": "initial policy of all other rows",
    "imagined_rl": "fine-tuned in the world model only",
    "bc_only": "same number of updates, on the demonstrations",
    "sft_sharpened": "SFT with a lower sampling temperature; greedy is its limit",
    "language_blind": "improved policy with a wrong instruction",
}
