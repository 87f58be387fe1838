# Loads a file of torch.save. PyTorch is large, so it does so by torch only where that is installed, and else by Python's own
# unpickler, held to the globals that a file of tensors needs. Tensors come as arrays of numpy.
import numpy as np


def load_pt(path):
    try:
        import torch
    except ImportError:
        return unpickled(path)
    loaded = torch.load(path, weights_only=True)
    mapped = torch.load(path, weights_only=True, mmap=True)
    if "data" in loaded and torch.is_tensor(loaded["data"]):
        assert torch.equal(loaded["data"].nan_to_num(), mapped["data"].nan_to_num())
    tensor = lambda value: value.numpy() if torch.is_tensor(value) else value
    return {
        key: [tensor(item) for item in value] if isinstance(value, list) else tensor(value)
        for key, value in loaded.items()
    }


def unpickled(path):
    import collections, pickle, zipfile

    archive = zipfile.ZipFile(path)
    assert archive.testzip() is None
    folder = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
    assert archive.read(folder + "byteorder") == b"little" and archive.read(folder + "version") == b"3\n"
    types = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}

    def rebuild(storage, offset, shape, strides, requires_grad, hooks):
        assert requires_grad is False and hooks == collections.OrderedDict()
        whole = np.frombuffer(*storage)
        steps = [stride * whole.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(whole[offset:], shape, steps)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return rebuild
            if (module, name) == ("collections", "OrderedDict"):
                return collections.OrderedDict
            assert module == "torch" and name in types, (module, name)
            return name

        def persistent_load(self, pid):
            kind, storage, key, device, count = pid
            assert (kind, device) == ("storage", "cpu"), pid
            raw = archive.read(f"{folder}data/{key}")
            dtype = np.dtype(types[storage])
            assert len(raw) == count * dtype.itemsize, (len(raw), pid)
            # The extra field of the entry's own header aligns it.
            return raw, dtype

    return Unpickler(archive.open(folder + "data.pkl")).load()
