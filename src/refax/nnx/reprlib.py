"""`nnx.reprlib`: a `repr` of one's own."""

from ..objects.representation import Attr as Attr, Object as Object, Representable as Representable
from ..objects.type_names import A as A, B as B
