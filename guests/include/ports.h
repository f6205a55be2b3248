/* Ports, registers and bits that the guests use, for assembly and C alike; the names are the data sheets'. */
#ifndef PORTS_H
#define PORTS_H

#define DEBUG_EXIT 0xF4          /* a byte written here ends the guest with that value */
#define DEBUG_CONSOLE 0xE9       /* a byte written here is the monitor's to show */

/* 16550A UART, first serial port, IRQ 4 */
#define COM1 0x3F8
#define UART_RBR (COM1 + 0)      /* read: received byte */
#define UART_THR (COM1 + 0)      /* write: byte to send */
#define UART_DLL (COM1 + 0)      /* divisor, while LCR.DLAB */
#define UART_DLM (COM1 + 1)
#define UART_IER (COM1 + 1)
#define UART_IER_RDI 0x01
#define UART_IER_THRI 0x02
#define UART_IIR (COM1 + 2)
#define UART_IIR_NO_INT 0x01
#define UART_IIR_THRI 0x02
#define UART_IIR_RDI 0x04
#define UART_IIR_RX_TIMEOUT 0x0C
#define UART_FCR (COM1 + 2)
#define UART_FCR_ENABLE 0x01
#define UART_FCR_CLEAR 0x07      /* enabled, both FIFOs emptied, trigger at 1 byte */
#define UART_FCR_CLEAR_TRIGGER_14 0xC7
#define UART_LCR (COM1 + 3)
#define UART_LCR_8N1 0x03
#define UART_LCR_DLAB 0x80
#define UART_MCR (COM1 + 4)
#define UART_MCR_DTR 0x01
#define UART_MCR_RTS 0x02
#define UART_MCR_OUT1 0x04
#define UART_MCR_OUT2 0x08       /* lets the interrupt out to the PIC */
#define UART_MCR_LOOP 0x10
#define UART_LSR (COM1 + 5)
#define UART_LSR_DR 0x01
#define UART_LSR_OE 0x02
#define UART_LSR_THRE 0x20
#define UART_LSR_TEMT 0x40
#define UART_MSR (COM1 + 6)
#define UART_SCR (COM1 + 7)

/* 8259A pair */
#define PIC1_CMD 0x20
#define PIC1_DATA 0x21
#define PIC2_CMD 0xA0
#define PIC2_DATA 0xA1
#define PIC_ICW1 0x11            /* edge triggered, cascade, ICW4 follows */
#define PIC_ICW4 0x01            /* 8086 mode, EOI by command */
#define PIC_EOI 0x20
#define PIC1_BASE 0x20           /* the vectors that the guests give IRQ 0-7 and 8-15 */
#define PIC2_BASE 0x28

/* 8254 PIT; its input clock is 1193182 Hz */
#define PIT_CH0 0x40
#define PIT_MODE 0x43
#define PIT_CH0_RATE 0x34        /* channel 0, low then high byte, mode 2 */
#define PIT_HZ 1193182

/* i8042 */
#define I8042_DATA 0x60
#define I8042_CMD 0x64
#define I8042_STATUS 0x64
#define I8042_STR_OBF 0x01
#define I8042_STR_IBF 0x02
#define I8042_STR_AUXDATA 0x20
#define I8042_CMD_CTL_WCTR 0x60
#define I8042_CMD_PULSE_RESET 0xFE
#define I8042_CTR 0x45           /* translate to set 1, system flag, keyboard interrupt on */

/* MC146818 RTC */
#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define RTC_SECONDS 0x00
#define RTC_SECONDS_ALARM 0x01
#define RTC_MINUTES 0x02
#define RTC_MINUTES_ALARM 0x03
#define RTC_HOURS 0x04
#define RTC_HOURS_ALARM 0x05
#define RTC_DAY 0x07
#define RTC_MONTH 0x08
#define RTC_YEAR 0x09
#define RTC_REG_A 0x0A
#define RTC_UIP 0x80
#define RTC_REG_B 0x0B
#define RTC_24H 0x02
#define RTC_DM_BINARY 0x04
#define RTC_AIE 0x20
#define RTC_REG_C 0x0C
#define RTC_AF 0x20
#define RTC_IRQF 0x80
#define RTC_REG_D 0x0D
#define RTC_VRT 0x80
#define RTC_CENTURY 0x32
#define CMOS_MARK 0x7F           /* CMOS RAM survives a reset: the reset guests note here that they were reset */
#define CMOS_MARK_RESET 0xA5

/* the other ways to reset */
#define PORT92 0x92
#define PORT92_INIT_NOW 0x01
#define RESET_CONTROL 0xCF9
#define RESET_SYS_RST 0x02
#define RESET_RST_CPU 0x04

/* ACPI: SLP_EN with the SLP_TYP of S5 turns the machine off */
#define PM1_CNT 0x604
#define PM1_CNT_S5 0x3C00

/* ACPI mode, and general-purpose events */
#define APM_CNT 0xB2
#define ACPI_ENABLE 0x02
#define GPE0_STS 0x620
#define GPE0_EN 0x622
#define GPE_CPU_HOTPLUG 4

/* CPU hot-plug; all but the selector are registers of the selected CPU */
#define CPUHP_SELECTOR 0xCD8
#define CPUHP_STATUS 0xCDC
#define CPUHP_ENABLED 0x01
#define CPUHP_INSERT 0x02
#define CPUHP_REMOVE 0x04
#define CPUHP_EJECT 0x08
#define CPUHP_COMMAND 0xCDD
#define CPUHP_NEXT 0x00
#define CPUHP_OST_EVENT 0x01
#define CPUHP_OST_STATUS 0x02
#define CPUHP_DATA 0xCE0
#define OST_EJECT_REQUEST 0x03
#define OST_DEVICE_IN_USE 0x81

/* primary ATA channel, IRQ 14 */
#define ATA_DATA 0x1F0
#define ATA_ERROR 0x1F1
#define ATA_COUNT 0x1F2
#define ATA_LBA_LOW 0x1F3
#define ATA_LBA_MID 0x1F4
#define ATA_COMMAND 0x1F7        /* read: status, which ends the interrupt */
#define ATA_DEVICE_CONTROL 0x3F6 /* read: alternate status */
#define ATA_NIEN 0x02
#define ATA_SRST 0x04
#define ATA_DEVICE_LBA 0xE0
#define ATA_READ_SECTORS 0x20
#define ATA_BSY 0x80
#define ATA_ERR 0x01
#define ATA_FLOATING 0x7F        /* what is read where there is no drive */

/* local APIC */
#define LAPIC 0xFEE00000
#define LAPIC_ID 0x20
#define LAPIC_SVR 0xF0
#define LAPIC_SVR_ENABLE 0x100
#define LAPIC_ICR 0x300
#define LAPIC_ICR_HIGH 0x310     /* the upper byte is the APIC ID of whom it goes to */
#define LAPIC_INIT 0x4500        /* to that one, assert, INIT */
#define LAPIC_SIPI 0x4600        /* to that one, assert, start-up; the low byte is the page */
#define LAPIC_ICR_PENDING 0x1000
#define LAPIC_INIT_OTHERS 0xC4500   /* all but self, assert, INIT */
#define LAPIC_SIPI_OTHERS 0xC4600   /* all but self, assert, start-up; the low byte is the page */

/* VGA text screen and the CRTC's cursor registers */
#define VGA_TEXT 0xB8000
#define CRTC_INDEX 0x3D4
#define CRTC_DATA 0x3D5
#define CRTC_CURSOR_START 0x0A
#define CRTC_CURSOR_OFF 0x20
#define CRTC_CURSOR_HIGH 0x0E
#define CRTC_CURSOR_LOW 0x0F

#endif
