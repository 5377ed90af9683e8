"""Kills, full disks, damaged files and faulty services, tried in hundreds; the tables of docs/reliability.md.

Each tool is run from the checkout, `python -m tests.campaign.kills --count 200 --out kills.jsonl`. Every finished
case is one line of JSON; the same command goes on where it stopped, and `--case ID` repeats one case.
"""
