# SPDX-License-Identifier: MIT
"""Finds the row of an operation by its words."""
from operations import COMMON, PERCPU_REF, QUEUE
from scsi_operations import SCSI_DEVICE, SCSI_HOST


def by_name(*tables):
    return {row.name: row for rows in tables for row in rows}


TABLE = by_name(QUEUE, PERCPU_REF, COMMON)
SCSI_TABLE = by_name(SCSI_DEVICE, SCSI_HOST)


def row_of(words):
    """The row, or None. Some names mean one operation on queues and another one on SCSI: there
    what they are about is a host, a device or a command."""
    about = words[1] if len(words) > 1 else ""
    about_scsi = about == "h" or (about[:1] in ("d", "c") and about[1:].isdigit())
    return (SCSI_TABLE if about_scsi else TABLE).get(words[0])
