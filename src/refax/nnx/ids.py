"""`nnx.ids`: the universally unique ids of Python."""

from ..objects.extras import UUID as UUID, uuid as uuid
