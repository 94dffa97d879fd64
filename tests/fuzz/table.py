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
    about_scsi = len(words) > 1 and (words[1] == "h" or (words[1][0] in "dc" and words[1][1:].isdigit()))
    return (SCSI_TABLE if about_scsi else TABLE).get(words[0])
