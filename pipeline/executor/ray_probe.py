"""A program that joins a Ray cluster, prints what came of it as JSON, and ends.

Ray writes pages when it cannot join, waits for minutes, or ends the process. ``ray_connection.py`` therefore lets this
program try first. It imports nothing but Ray, so that it runs as a file wherever the project is.
"""

from __future__ import annotations

import json
import os
import sys

SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable by which Ray knows the driver of a submitted job. The probe is none."""


def main() -> None:
    """Join the cluster at the address in the first argument. Prints type and text of Ray's error; both empty for none."""
    os.environ.pop(SUBMITTED_JOB, None)
    import ray

    error_type = message = ""
    try:
        ray.init(address=sys.argv[1], include_dashboard=None, log_to_driver=False)
    except BaseException as error:
        error_type, message = type(error).__name__, str(error)
    sys.stdout.write(json.dumps({"error": error_type, "message": message}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # Ray's own end takes seconds


if __name__ == "__main__":
    main()
