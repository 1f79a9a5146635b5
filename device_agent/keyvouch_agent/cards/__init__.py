"""The provider over smartcards and PKCS#11 tokens: accounts on cards, and waiting for a card to be put in.

wish         which module, token and key are meant, out of settings and command line
account      the folder of an account: opened over its card, taken over from a killed enrolment, removed
provider     `Provider` of one account, whether its card is there or not

python-pkcs11 is loaded when a card is wanted, and not before.
"""
