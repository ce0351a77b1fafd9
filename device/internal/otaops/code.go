package otaops

import "fmt"

// Code is an ESP-IDF error code (esp_err_t). It is an error, so that
// errors.Is(err, otaops.ValidateFailed) asks for one.
type Code int32

// The codes that this package returns (esp_err.h, esp_ota_ops.h).
const (
	Fail                 Code = -1     // ESP_FAIL
	InvalidArg           Code = 0x102  // ESP_ERR_INVALID_ARG
	InvalidSize          Code = 0x104  // ESP_ERR_INVALID_SIZE
	NotFound             Code = 0x105  // ESP_ERR_NOT_FOUND
	NotSupported         Code = 0x106  // ESP_ERR_NOT_SUPPORTED
	PartitionConflict    Code = 0x1501 // ESP_ERR_OTA_PARTITION_CONFLICT
	SelectInfoInvalid    Code = 0x1502 // ESP_ERR_OTA_SELECT_INFO_INVALID
	ValidateFailed       Code = 0x1503 // ESP_ERR_OTA_VALIDATE_FAILED
	SmallSecVer          Code = 0x1504 // ESP_ERR_OTA_SMALL_SEC_VER
	RollbackFailed       Code = 0x1505 // ESP_ERR_OTA_ROLLBACK_FAILED
	RollbackInvalidState Code = 0x1506 // ESP_ERR_OTA_ROLLBACK_INVALID_STATE
)

func (c Code) Error() string {
	name := "unnamed"
	switch c {
	case Fail:
		return "ESP_FAIL (-1)"
	case InvalidArg:
		name = "ESP_ERR_INVALID_ARG"
	case InvalidSize:
		name = "ESP_ERR_INVALID_SIZE"
	case NotFound:
		name = "ESP_ERR_NOT_FOUND"
	case NotSupported:
		name = "ESP_ERR_NOT_SUPPORTED"
	case PartitionConflict:
		name = "ESP_ERR_OTA_PARTITION_CONFLICT"
	case SelectInfoInvalid:
		name = "ESP_ERR_OTA_SELECT_INFO_INVALID"
	case ValidateFailed:
		name = "ESP_ERR_OTA_VALIDATE_FAILED"
	case SmallSecVer:
		name = "ESP_ERR_OTA_SMALL_SEC_VER"
	case RollbackFailed:
		name = "ESP_ERR_OTA_ROLLBACK_FAILED"
	case RollbackInvalidState:
		name = "ESP_ERR_OTA_ROLLBACK_INVALID_STATE"
	}
	return fmt.Sprintf("%s (0x%x)", name, int32(c))
}

// Error is a refusal with ESP-IDF's code. Unwrap gives the code.
type Error struct {
	Op     string // what was being done
	Code   Code
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s: %s", e.Op, e.Reason, e.Code.Error()) }

// Unwrap returns the code.
func (e *Error) Unwrap() error { return e.Code }

func fail(op string, code Code, format string, args ...any) error {
	return &Error{Op: op, Code: code, Reason: fmt.Sprintf(format, args...)}
}
