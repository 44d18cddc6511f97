"""Results of every algorithm by its version, and a lock of the sources that compute them.

Where an algorithm gives other results while its version in exltune/schema/versions.py is the same, a test fails.
`python -m tests.golden.update` writes the files anew, and refuses to where a version was not raised.
"""
