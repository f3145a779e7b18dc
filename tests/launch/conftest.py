"""Keeps pytest from importing the programs that tests start: each defines flags of its own."""

collect_ignore = ['run_cases.py', 'sleeper.py', 'small_sweep.py', 'hostile_cases.py']
