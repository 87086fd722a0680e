"""Items <-> codes: tokenisers that give every item a Semantic ID, the item-code table, and the trie of valid SIDs.

Importing this package needs numpy and torch only; tokenisers import scikit-learn when they are used.
"""
