"""Ids that no two objects share: the universally unique ids of Python."""

from uuid import UUID as UUID
from uuid import uuid4

uuid = uuid4
