"""From nothing to a checkpoint: corpus, tokenizer, pretraining, distillation, masks, evaluation.

`space_core` never imports this package; this package shares its `layout`, so that training and
inference cannot disagree about which row sees which.
"""
