"""What a release needs beside the code: a bill of materials, an audit, and builds that come out the same.

The standard library alone, so that it runs before anything is installed.  docs/releasing.md says how it is used.
"""
