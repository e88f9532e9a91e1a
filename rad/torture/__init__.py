"""Trying to lose or falsify a run: kills, full disks, damage, nonsense, and planted faults.

Each attack is a list of cases that a number decides, so that a run of them can be resumed and
repeated. A case ends as `survived`, `refused` (in one line, before or without any harm) or `lost`.
"""
