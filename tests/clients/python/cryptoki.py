"""PKCS#11 as C sees it (v3.1 section 5): the functions that an attacker needs, with nothing between him and the token.

Libraries refuse what a key's attributes do not allow before they ask the token. An attacker would ask.
"""

import ctypes
from ctypes import POINTER, byref, c_ubyte, c_ulong, c_void_p

from pkcs11t import CKF, CKU_USER

# CK_FUNCTION_LIST, in its order, up to the last one that is used.
FUNCTIONS = """
    Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList GetMechanismInfo
    InitToken InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo GetOperationState
    SetOperationState Login Logout CreateObject CopyObject DestroyObject GetObjectSize GetAttributeValue
    SetAttributeValue FindObjectsInit FindObjects FindObjectsFinal EncryptInit Encrypt EncryptUpdate EncryptFinal
    DecryptInit Decrypt DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal SignInit Sign
    SignUpdate SignFinal SignRecoverInit SignRecover VerifyInit Verify VerifyUpdate VerifyFinal VerifyRecoverInit
    VerifyRecover DigestEncryptUpdate DecryptDigestUpdate SignEncryptUpdate DecryptVerifyUpdate GenerateKey
    GenerateKeyPair WrapKey UnwrapKey DeriveKey
""".split()

ANSWERS = {
    0x05: "GENERAL_ERROR",
    0x06: "FUNCTION_FAILED",
    0x07: "ARGUMENTS_BAD",
    0x10: "ATTRIBUTE_READ_ONLY",
    0x11: "ATTRIBUTE_SENSITIVE",
    0x12: "ATTRIBUTE_TYPE_INVALID",
    0x13: "ATTRIBUTE_VALUE_INVALID",
    0x1B: "ACTION_PROHIBITED",
    0x54: "FUNCTION_NOT_SUPPORTED",
    0x60: "KEY_HANDLE_INVALID",
    0x63: "KEY_TYPE_INCONSISTENT",
    0x67: "KEY_INDIGESTIBLE",
    0x68: "KEY_FUNCTION_NOT_PERMITTED",
    0x69: "KEY_NOT_WRAPPABLE",
    0x6A: "KEY_UNEXTRACTABLE",
    0x70: "MECHANISM_INVALID",
    0x71: "MECHANISM_PARAM_INVALID",
    0x82: "OBJECT_HANDLE_INVALID",
    0x91: "OPERATION_NOT_INITIALIZED",
    0xD0: "TEMPLATE_INCOMPLETE",
    0xD1: "TEMPLATE_INCONSISTENT",
    0x180: "STATE_UNSAVEABLE",
}

OUTPUT_LEN_MAX = 16 * 1024


class Refused(Exception):
    """The token said no. Its text is the name of the code."""

    def __init__(self, code):
        super().__init__(ANSWERS.get(code, f"0x{code:X}"))


class Attribute(ctypes.Structure):
    """CK_ATTRIBUTE."""

    _fields_ = [("type", c_ulong), ("value", c_void_p), ("length", c_ulong)]


class Mechanism(ctypes.Structure):
    """CK_MECHANISM."""

    _fields_ = [("type", c_ulong), ("parameter", c_void_p), ("length", c_ulong)]


class MechanismInfo(ctypes.Structure):
    """CK_MECHANISM_INFO."""

    _fields_ = [("min_key_size", c_ulong), ("max_key_size", c_ulong), ("flags", c_ulong)]


class Token:
    """The only initialised token of a module, logged in."""

    def __init__(self, module, pin):
        get_list = ctypes.CDLL(module).C_GetFunctionList
        table = c_void_p()
        check(get_list(byref(table)))
        # CK_VERSION is two bytes, and the pointers that follow are aligned.
        pointers = ctypes.cast(table.value + ctypes.sizeof(c_void_p), POINTER(c_void_p))
        prototype = ctypes.CFUNCTYPE(c_ulong)
        self._functions = {name: prototype(pointers[index]) for index, name in enumerate(FUNCTIONS)}
        self.call("Initialize", None)
        self.slot = self._slot()
        self.session = c_ulong()
        self.call("OpenSession", self.slot, c_ulong(CKF.SERIAL_RW_SESSION), None, None, byref(self.session))
        self.call("Login", self.session, c_ulong(CKU_USER), pin.encode(), c_ulong(len(pin)))

    def call(self, name, *arguments):
        check(self._functions[name](*arguments))

    def _slot(self):
        slots, count = (c_ulong * 16)(), c_ulong(16)
        self.call("GetSlotList", c_ubyte(1), slots, byref(count))
        for slot in slots[: count.value]:
            # CK_TOKEN_INFO: three texts of 32, 32 and 16 bytes and a serial number of 16 stand before the flags.
            info = ctypes.create_string_buffer(512)
            self.call("GetTokenInfo", c_ulong(slot), info)
            if c_ulong.from_buffer(info, 96).value & CKF.TOKEN_INITIALIZED:
                return c_ulong(slot)
        raise SystemExit("no initialised token")

    def mechanisms(self):
        """Each mechanism with its flags."""
        types, count = (c_ulong * 512)(), c_ulong(512)
        self.call("GetMechanismList", self.slot, types, byref(count))
        flags = {}
        for kind in types[: count.value]:
            info = MechanismInfo()
            self.call("GetMechanismInfo", self.slot, c_ulong(kind), byref(info))
            flags[kind] = info.flags
        return flags

    def find(self, wanted):
        array, count = template(wanted)
        self.call("FindObjectsInit", self.session, array, count)
        handles, found = (c_ulong * 1024)(), c_ulong()
        try:
            self.call("FindObjects", self.session, handles, c_ulong(1024), byref(found))
        finally:
            self.call("FindObjectsFinal", self.session)
        return handles[: found.value]

    def read(self, handle, kind):
        buffer = ctypes.create_string_buffer(OUTPUT_LEN_MAX)
        attribute = Attribute(kind, ctypes.cast(buffer, c_void_p), OUTPUT_LEN_MAX)
        self.call("GetAttributeValue", self.session, c_ulong(handle), byref(attribute), c_ulong(1))
        return buffer.raw[: attribute.length]

    def set(self, handle, values):
        self.call("SetAttributeValue", self.session, c_ulong(handle), *template(values))

    def copy(self, handle, values):
        return self._new("CopyObject", c_ulong(handle), *template(values))

    def generate(self, mechanism, values):
        return self._new("GenerateKey", byref(pack(mechanism)), *template(values))

    def generate_pair(self, mechanism, public, private):
        halves = c_ulong(), c_ulong()
        both = *template(public), *template(private)
        self.call("GenerateKeyPair", self.session, byref(pack(mechanism)), *both, *map(byref, halves))
        return tuple(half.value for half in halves)

    def wrap(self, mechanism, wrapping, key):
        return self._bytes("WrapKey", byref(pack(*mechanism)), c_ulong(wrapping), c_ulong(key))

    def unwrap(self, mechanism, unwrapping, blob, values):
        arguments = byref(pack(*mechanism)), c_ulong(unwrapping), blob, c_ulong(len(blob))
        return self._new("UnwrapKey", *arguments, *template(values))

    def derive(self, mechanism, base, values):
        return self._new("DeriveKey", byref(pack(*mechanism)), c_ulong(base), *template(values))

    def encrypt(self, mechanism, key, data):
        self.begin("EncryptInit", mechanism, key)
        return self.finish("Encrypt", data)

    def decrypt(self, mechanism, key, data):
        self.begin("DecryptInit", mechanism, key)
        return self.finish("Decrypt", data)

    def sign_recover(self, mechanism, key, data):
        self.begin("SignRecoverInit", mechanism, key)
        return self.finish("SignRecover", data)

    def digest_key(self, mechanism, key):
        self.call("DigestInit", self.session, byref(pack(*mechanism)))
        try:
            self.call("DigestKey", self.session, c_ulong(key))
        except Refused:
            self._end_digest()
            raise
        return self._bytes("DigestFinal")

    def _end_digest(self):
        try:
            self._bytes("DigestFinal")
        except Refused:
            pass  # It had ended the operation itself.

    def operation_state(self):
        return self._bytes("GetOperationState")

    def destroy(self, handle):
        self.call("DestroyObject", self.session, c_ulong(handle))

    def begin(self, name, mechanism, key):
        self.call(name, self.session, byref(pack(*mechanism)), c_ulong(key))

    def finish(self, name, data):
        return self._bytes(name, data, c_ulong(len(data)))

    def _new(self, name, *arguments):
        handle = c_ulong()
        self.call(name, self.session, *arguments, byref(handle))
        return handle.value

    def _bytes(self, name, *arguments):
        buffer, length = ctypes.create_string_buffer(OUTPUT_LEN_MAX), c_ulong(OUTPUT_LEN_MAX)
        self.call(name, self.session, *arguments, buffer, byref(length))
        return buffer.raw[: length.value]


def check(code):
    if code:
        raise Refused(code)


def pack(kind, parameter=b""):
    """CK_MECHANISM; the parameter is bytes, or a structure of C."""
    if isinstance(parameter, bytes):
        parameter = ctypes.create_string_buffer(parameter, len(parameter)) if parameter else None
    if parameter is None:
        return Mechanism(kind, None, 0)
    mechanism = Mechanism(kind, ctypes.cast(byref(parameter), c_void_p), ctypes.sizeof(parameter))
    mechanism.keeps = parameter
    return mechanism


def template(values):
    """CK_ATTRIBUTE array and its length."""
    array = (Attribute * len(values))()
    array.keeps = []
    for attribute, (kind, value) in zip(array, values.items()):
        if isinstance(value, bool):
            value = bytes([value])
        elif isinstance(value, int):
            value = bytes(c_ulong(value))
        buffer = ctypes.create_string_buffer(value, len(value))
        array.keeps.append(buffer)
        attribute.type, attribute.length = kind, len(value)
        attribute.value = ctypes.cast(buffer, c_void_p)
    return array, c_ulong(len(values))
