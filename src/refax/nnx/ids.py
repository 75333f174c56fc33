"""`nnx.ids`: the universally unique ids of Python."""

from ..objects.ids import UUID as UUID, uuid as uuid
