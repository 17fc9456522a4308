"""On the import path of a process, makes this distribution's packages impossible to import there."""

import sys


class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("conformance", "optimized", "reference"):
            raise ModuleNotFoundError(f"no module named {name!r}: this process is without the suite", name=name)


sys.meta_path.insert(0, Blocked)
