"""Conversations as training data: readers of the field's formats, splitting, and weights a token.

``formats`` turns the rows of a file into records, ``splitting`` cuts long conversations at turns,
``encoding`` makes token ids and codes of them for a token store, and ``chat`` says which codes are
trained and with what weight.
"""
