/* A libcuda.so.1 that tells of one MIG slice: what skiff.kernels.gpu asks, and nothing else. */
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "NVIDIA A100-SXM4-40GB MIG 3g.20gb", length);
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : 0;
    return 0;
}
