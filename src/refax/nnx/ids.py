"""`nnx.ids`: the universally unique ids of Python."""

from uuid import UUID as UUID, uuid4 as uuid
