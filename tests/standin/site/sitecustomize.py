"""Puts the stand-in's import hook into a child process; see tests/standin/hook.py."""

from tests.standin.hook import install

install()
