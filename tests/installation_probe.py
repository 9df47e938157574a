"""Run by test_install_model.py with a hub's address in the environment: several installations in one process.

Reads ``[{name, argv, token}]`` as JSON from standard input; writes name to the one line of its failure, or nothing.
"""

from __future__ import annotations

import json
import os
import sys

import plm_install_model
from plm.errors import UserError


def main() -> None:
    outcomes = {}
    for case in json.load(sys.stdin):
        os.environ.pop("HF_TOKEN", None)
        if case["token"]:
            os.environ["HF_TOKEN"] = case["token"]
        try:
            plm_install_model.run(case["argv"])
            outcomes[case["name"]] = ""
        except UserError as error:
            outcomes[case["name"]] = str(error)
    print(json.dumps(outcomes))


main()
