"""Diagnosis of recordings for world-model training: ranges, alignment, idle steps and repeated pictures.

A world model learns what an action does between two frames. Recordings can be intact and still teach the wrong thing:
actions that are logged late, a camera that is slower than the log, long idle parts. The diagnosis measures these.

Example::

    recorder = Recorder(dataset.specs, fps=10.0, steps=4000)
    for number, episode in enumerate(dataset):
        recorder.add(number, episode)
    facts = diagnose(recorder)
    facts["pictures"][0]["repeats"], facts["remarks"]
"""

from worldgym.data.diagnosis.recorder import Recorder
from worldgym.data.diagnosis.report import diagnose
from worldgym.data.diagnosis.text import lines

__all__ = ["Recorder", "diagnose", "lines"]
