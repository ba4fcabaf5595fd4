// Enums whose values have names in JavaScript.
#pragma once

#include <cstddef>
#include <cstdint>

#define REAP_ENUMERATOR(value, name) value,
#define REAP_ENUMERATOR_NAME(value, name) name,

// Defines the enum, `names` and name_of() from a list of `X(value, "name")`. Only names cross the
// seam.
#define REAP_NAMED_ENUM(Enum, names, LIST)                                          \
  enum class Enum : uint32_t { LIST(REAP_ENUMERATOR) };                             \
  inline constexpr const char* names[] = {LIST(REAP_ENUMERATOR_NAME)}; /* NOLINT */ \
  inline const char* name_of(Enum value) { return names[static_cast<size_t>(value)]; }
