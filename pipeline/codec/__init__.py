"""Bytes <-> typed values: wire format, Avro, JSON and bytes codecs, contracts on disk and schema
registries.
"""

from pipeline.codec.avro import AvroCodec, AvroPolicy
from pipeline.codec.catalogue import SchemaCatalogue, product_catalogue
from pipeline.codec.plain import BytesCodec, Codec, JsonCodec
from pipeline.codec.registry import SchemaNotFound, SchemaRegistry, subject_of

__all__ = [
    "AvroCodec",
    "AvroPolicy",
    "BytesCodec",
    "Codec",
    "JsonCodec",
    "SchemaCatalogue",
    "SchemaNotFound",
    "SchemaRegistry",
    "product_catalogue",
    "subject_of",
]
