"""Keeps pydicom from judging, logging or printing the values of other people's files.

Scanners break PS3.5 6.2 daily; pydicom would warn with the offending value, which may be a
patient's name. The node copies such values as they are and reports what matters by itself.
"""

from __future__ import annotations

import logging
import warnings

from pydicom import config


def silence_pydicom() -> None:
    """Set pydicom's process-wide switches: no validation, no warnings, no log records."""
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?$")


silence_pydicom()
