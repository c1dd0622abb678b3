/* libFuzzer's entry points: Python inside, to set the target up; then frames, without it. */
#include <Python.h>

typedef int (*fuzz_one_type)(const uint8_t *, size_t);
static fuzz_one_type fuzz_one;

static void check(const void *done)
{
    if (!done) {
        PyErr_Print();
        abort();
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    Py_InitializeEx(0);
    PyObject *module = PyImport_ImportModule("harness");
    check(module);
    check(PyObject_CallMethod(module, "set_up", NULL));
    PyObject *api = PyObject_GetAttrString(module, "__pyx_capi__");
    check(api);
    PyObject *capsule = PyDict_GetItemString(api, "fuzz_one");
    check(capsule);
    fuzz_one = (fuzz_one_type)PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    check(fuzz_one);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_one(data, size);
}
