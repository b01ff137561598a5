"""What an image installs, as pip requirements: the package's own dependencies and those of one extra.

    python docker/dependencies.py api > requirements.txt

It reads pyproject.toml alone, so that the layer with the dependencies is built anew only when they change.
"""

import sys
import tomllib
from pathlib import Path


def main(extra: str) -> None:
    """Print the requirements of `extra`, one a line."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    print("\n".join([*project["dependencies"], *project["optional-dependencies"][extra]]))


if __name__ == "__main__":
    main(sys.argv[1])
