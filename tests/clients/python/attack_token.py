"""Tries to get private keys out of a PKCS#11 token, as somebody could who has the PIN.

Arguments: MODULE PIN_FILE; SOFTHSM2_CONF leads to the token. For every private key of the token: reads each
attribute that holds key material, wraps the key under a key of the attacker's, loosens its attributes, copies
it with loose ones. Prints one JSON object a line, {"key": label, "attack": name, "answer": exception's name};
an attack that succeeded has "answer": null. Exit code: 0 when every attack failed, 1 when one succeeded.
"""

import json
import sys

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

MATERIAL = [
    Attribute.VALUE,
    Attribute.PRIVATE_EXPONENT,
    Attribute.PRIME_1,
    Attribute.PRIME_2,
    Attribute.EXPONENT_1,
    Attribute.EXPONENT_2,
    Attribute.COEFFICIENT,
]

LOOSER = {
    "EXTRACTABLE": {Attribute.EXTRACTABLE: True},
    "SENSITIVE": {Attribute.SENSITIVE: False},
    "DECRYPT": {Attribute.DECRYPT: True},
    "UNWRAP": {Attribute.UNWRAP: True},
    "MODIFIABLE": {Attribute.MODIFIABLE: True},
    "WRAP_WITH_TRUSTED": {Attribute.WRAP_WITH_TRUSTED: False},
}


def attacks(session, key):
    """Name and function of each attack on `key`; the function raises when the token withstands."""
    wrapping = session.generate_key(
        KeyType.AES,
        256,
        store=False,
        template={Attribute.WRAP: True, Attribute.UNWRAP: True, Attribute.DECRYPT: True},
    )
    for attribute in MATERIAL:
        yield f"read {attribute.name}", lambda a=attribute: key[a]
    for mechanism in (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD):
        yield f"wrap {mechanism.name}", lambda m=mechanism: wrapping.wrap_key(key, mechanism=m)
    for name, template in LOOSER.items():
        yield f"copy {name}", lambda t=template: key.copy({Attribute.TOKEN: False, **t})
    # Last: what was loosened would help the others.
    for name, template in LOOSER.items():
        yield f"set {name}", lambda t=template: loosen(key, t)


def loosen(key, template):
    for attribute, value in template.items():
        key[attribute] = value


def main() -> int:
    module, pin_file = sys.argv[1:]
    with open(pin_file, encoding="ascii") as file:
        pin = file.read().rstrip("\n")
    (token,) = pkcs11.lib(module).get_tokens(token_flags=pkcs11.TokenFlag.TOKEN_INITIALIZED)
    safe = True
    with token.open(user_pin=pin, rw=True) as session:
        for key in list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})):
            for attack, attempt in attacks(session, key):
                try:
                    attempt()
                    answer = None
                except pkcs11.PKCS11Error as error:
                    answer = type(error).__name__
                safe &= answer is not None
                print(json.dumps({"key": key.label, "attack": attack, "answer": answer}))
    return 0 if safe else 1


if __name__ == "__main__":
    sys.exit(main())
