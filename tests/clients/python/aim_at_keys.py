"""A plugin of pytest that aims pkcs11-check at keys that are in the token already.

pkcs11-check attacks keys that it makes. Here, each time it makes one that must be protected (a private key, or a
secret one that is sensitive or not extractable), it is given one of the keys in KMS_CKA_IDS (hexadecimal, separated
by commas) instead; each test runs once for each of them. It never destroys them. A test that got one has the
property "aimed".
"""

import ctypes
import os

import pytest
from pkcs11_check.raw.pack import template_from_dict
from pkcs11_check.raw.recipes import find_objects
from pkcs11_check.raw.types_std import (
    CK_ATTRIBUTE,
    CKA_CLASS,
    CKA_EXTRACTABLE,
    CKA_ID,
    CKA_SENSITIVE,
    CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
    CKR_OK,
)


@pytest.fixture(autouse=True, params=os.environ["KMS_CKA_IDS"].split(","))
def aim(request, p11_raw_session, monkeypatch):
    raw, session = p11_raw_session.raw, p11_raw_session.sh
    generate, destroy = raw.C_GenerateKey, raw.C_DestroyObject
    cka_id = bytes.fromhex(request.param)
    private, public = (one(raw, session, cls, cka_id) for cls in (CKO_PRIVATE_KEY, CKO_PUBLIC_KEY))

    def give(pointer, handle):
        pointer._obj.value = handle
        request.node.user_properties.append(("aimed", request.param))

    def generate_key(*arguments):
        _, _, template, count, handle = arguments
        if not is_protected(template, count):
            return generate(*arguments)
        give(handle, private)
        return CKR_OK

    def generate_key_pair(*arguments):
        give(arguments[-2], public)
        give(arguments[-1], private)
        return CKR_OK

    def destroy_object(session, handle):
        return CKR_OK if handle in (private, public) else destroy(session, handle)

    monkeypatch.setattr(raw, "C_GenerateKey", generate_key, raising=False)
    monkeypatch.setattr(raw, "C_GenerateKeyPair", generate_key_pair, raising=False)
    monkeypatch.setattr(raw, "C_DestroyObject", destroy_object, raising=False)


def one(raw, session, cls, cka_id):
    (handle,) = find_objects(raw, session, template_from_dict({CKA_CLASS: cls, CKA_ID: cka_id}))
    return handle


def is_protected(template, count):
    attributes = ctypes.cast(template, ctypes.POINTER(CK_ATTRIBUTE))[: int(count)]
    return any(
        (attribute.type, ctypes.string_at(attribute.pValue, attribute.ulValueLen))
        in ((CKA_SENSITIVE, b"\1"), (CKA_EXTRACTABLE, b"\0"))
        for attribute in attributes
    )
