"""What training, generation and measuring take as a model.

Both members have ``config`` (``vocab_size``, ``max_positions``, ``logit_softcap``, ids of special tokens), ``forward``,
``head``, ``logits``, ``prefill``, ``step``, ``decoding`` and ``matrices`` with the meaning that :class:`Backbone` gives them, and one
:class:`~minnow.model.state.DecodeState`.
"""

from minnow.model.backbone import Backbone
from minnow.model.foreign import ForeignModel

LanguageModel = Backbone | ForeignModel
