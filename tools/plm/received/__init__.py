"""The one door where files of strangers come in: whatever a user uploads or an administrator's folder holds.

Nothing outside this package opens an archive, JSON, HDF5, numpy, Parquet, safetensors, ``.bin`` or vocabulary file that
the running job has not written itself (``tests/test_received.py`` looks for ways around). Here a file is judged by what
it really is before it is used: names in archives are plain, sizes are compared with the file's own, nothing refers to
another file, nothing is a program, text is text. What does not pass is one line (:class:`plm.errors.UserError`).

An administrator may change the limits through environment variables (:mod:`plm.received.limits`):

=======================  ==============================================================================================
``PLM_MAX_UNPACKED_GIB`` what an archive may hold when unpacked (512)
``PLM_MAX_RATIO``        how many times larger than itself a compressed file may become (200; small ones may always)
``PLM_MAX_MEMBERS``      files in an archive (100,000)
``PLM_MAX_JSON_MIB``     size of one JSON document (64)
``PLM_MODEL_ROOTS``      folders, separated by ``:``, into which links in a model's folder may lead beside itself
=======================  ==============================================================================================
"""
