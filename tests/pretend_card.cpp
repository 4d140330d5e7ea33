// What torch asks of CUDA before it calls an operator on a tensor that says cuda: a guard, which here does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>);
}
