/* A libcuda.so.1 to link against on a machine without a driver. Each function of Triton's launcher
 * and utilities is there, and fails when called (CUDA_ERROR_STUB_LIBRARY). At run time the loader
 * finds the driver's library first. */
#define STUB(name) int name(void) { return 34; }
STUB(cuCtxGetCurrent)
STUB(cuCtxGetLimit)
STUB(cuCtxSetCurrent)
STUB(cuCtxSetLimit)
STUB(cuDeviceGet)
STUB(cuDeviceGetAttribute)
STUB(cuDevicePrimaryCtxRetain)
STUB(cuFuncGetAttribute)
STUB(cuFuncSetAttribute)
STUB(cuFuncSetCacheConfig)
STUB(cuGetErrorString)
STUB(cuInit)
STUB(cuLaunchKernel)
STUB(cuLaunchKernelEx)
STUB(cuModuleGetFunction)
STUB(cuModuleLoadData)
STUB(cuOccupancyMaxActiveClusters)
STUB(cuPointerGetAttribute)
STUB(cuPointerGetAttributes)
STUB(cuTensorMapEncodeTiled)
