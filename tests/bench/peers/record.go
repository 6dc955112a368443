package main

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// record is a decoded MsgRecord of proto/msg/v1/record.proto, without attributes, which the benchmark does not send.
type record struct {
	recvID, sendID, clientMsgID, contentType string
	sessionType                              int16
	content                                  []byte
	msgID                                    [16]byte
	sendTime                                 time.Time
}

func decode(value []byte) (record, error) {
	var r record
	err := fields(value, func(number protowire.Number, bytes []byte, varint uint64) error {
		switch number {
		case 1:
			return r.decodeMsg(bytes)
		case 2:
			copy(r.msgID[:], bytes)
		case 3:
			r.sendTime = time.UnixMilli(int64(varint))
		}
		return nil
	})
	return r, err
}

func (r *record) decodeMsg(value []byte) error {
	return fields(value, func(number protowire.Number, bytes []byte, varint uint64) error {
		switch number {
		case 1:
			r.recvID = string(bytes)
		case 2:
			r.sendID = string(bytes)
		case 3:
			r.clientMsgID = string(bytes)
		case 4:
			r.sessionType = int16(varint)
		case 5:
			r.contentType = string(bytes)
		case 6:
			r.content = bytes
		}
		return nil
	})
}

// fields calls found with each field of a message: its bytes or its varint.
func fields(value []byte, found func(protowire.Number, []byte, uint64) error) error {
	for len(value) > 0 {
		number, kind, length := protowire.ConsumeTag(value)
		if length < 0 {
			return protowire.ParseError(length)
		}
		value = value[length:]
		var bytes []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			bytes, length = protowire.ConsumeBytes(value)
		case protowire.VarintType:
			varint, length = protowire.ConsumeVarint(value)
		default:
			return fmt.Errorf("field %d has the type %d", number, kind)
		}
		if length < 0 {
			return protowire.ParseError(length)
		}
		value = value[length:]
		if err := found(number, bytes, varint); err != nil {
			return err
		}
	}
	return nil
}
